"""INT8 weights stored as INT8: the exporter leaves them in full precision in front of a quantize node."""

import numpy as np
import onnx
from onnx import numpy_helper


def fold_int8(model: onnx.ModelProto) -> int:
    """Replace weight -> QuantizeLinear -> DequantizeLinear [-> Transpose] by INT8 weight -> DequantizeLinear.

    In place. A Gemm fed by a folded weight becomes MatMul and Add, for which onnxruntime has an integer kernel.
    Returns how many weights were folded. The integers are those the runtime would compute: round half to even of
    weight / scale, clipped to +-127.
    """
    graph = model.graph
    weights = {i.name: i for i in graph.initializer}
    made_by = {o: n for n in graph.node for o in n.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def constant(name: str) -> np.ndarray | None:
        if name in weights:
            return numpy_helper.to_array(weights[name])
        node = made_by.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            return numpy_helper.to_array(node.attribute[0].t)
        return constant(node.input[0]) if node.op_type in ("Cast", "Identity") else None

    nodes: list[onnx.NodeProto] = []
    dropped: set[int] = set()
    folded = 0
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or (weight := constant(node.input[0])) is None:
            nodes.append(node)
            continue
        (dequantize,) = readers[node.output[0]]
        axis = next((a.i for a in node.attribute if a.name == "axis"), None)
        scale = constant(node.input[1])
        assert scale is not None
        shaped = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]) if scale.ndim else scale
        integers = np.clip(np.rint(weight.astype(np.float32) / shaped.astype(np.float32)), -127, 127).astype(np.int8)
        out, name = dequantize.output[0], f"{node.input[0]}.int8"
        after = readers.get(out, [])
        if len(after) == 1 and weight.ndim == 2 and axis is not None:
            if after[0].op_type == "Transpose":
                integers, axis, out = np.ascontiguousarray(integers.T), 1 - axis, after[0].output[0]
                dropped.add(id(after[0]))
            elif after[0].op_type == "Gemm" and _plain_gemm(after[0]):
                integers, axis = np.ascontiguousarray(integers.T), 1 - axis
                _ungemm(after[0])
        graph.initializer.append(numpy_helper.from_array(integers, name))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
        graph.initializer.append(numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{name}.zero"))
        attributes = {} if axis is None or not scale.ndim else {"axis": axis}
        inputs = [name, f"{name}.scale", f"{name}.zero"]
        nodes.append(onnx.helper.make_node("DequantizeLinear", inputs, [out], name=f"{name}.dequantize", **attributes))
        dropped.add(id(dequantize))
        folded += 1
    kept = [part for n in nodes if id(n) not in dropped for part in _expanded(n)]
    del graph.node[:]
    graph.node.extend(kept)
    _drop_unread(graph)
    return folded


_SPLIT = "diffopt.split"


def _plain_gemm(node: onnx.NodeProto) -> bool:
    """x @ w.T + b with nothing scaled."""
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return (
        len(node.input) == 3
        and values.get("transB") == 1
        and not values.get("transA")
        and values.get("alpha", 1.0) == 1.0
        and values.get("beta", 1.0) == 1.0
    )


def _ungemm(node: onnx.NodeProto) -> None:
    node.op_type = _SPLIT


def _expanded(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    if node.op_type != _SPLIT:
        return [node]
    product = f"{node.output[0]}.product"
    return [
        onnx.helper.make_node("MatMul", list(node.input[:2]), [product], name=f"{node.name}.matmul"),
        onnx.helper.make_node("Add", [product, node.input[2]], list(node.output), name=f"{node.name}.bias"),
    ]


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Initializers and constants that no node reads any more."""
    while True:
        read = {name for n in graph.node for name in n.input} | {o.name for o in graph.output}
        nodes = [n for n in graph.node if any(o in read for o in n.output)]
        if len(nodes) == len(graph.node):
            break
        del graph.node[:]
        graph.node.extend(nodes)
    kept = [i for i in graph.initializer if i.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
