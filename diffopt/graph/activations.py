"""Quantizers of activations: what modelopt's exporter leaves unfinished, as TensorRT and ONNX take it."""

import onnx

FP8 = onnx.TensorProto.FLOAT8E4M3FN
TO_E4M3, FROM_E4M3, TO_E2M1 = "TRT_FP8QuantizeLinear", "TRT_FP8DequantizeLinear", "TRT_FP4DynamicQuantize"


def finish(graph: onnx.GraphProto, kind: int) -> None:
    """In place, for a graph whose own precision is `kind` (onnx.TensorProto.DataType).

    FP8: ONNX's operators in place of TensorRT's own, the type said by a zero point. NVFP4: what is dequantized comes in
    FP32 and is cast.
    """
    made_by = {o: n for n in graph.node for o in n.output}
    nodes: list[onnx.NodeProto] = []
    cast: dict[str, str] = {}
    zero = None
    for node in graph.node:
        if node.op_type in (TO_E4M3, FROM_E4M3):
            if zero is None:
                zero = onnx.TensorProto(name="fp8.zero", data_type=FP8, raw_data=b"\0")
                graph.initializer.append(zero)
            node.op_type, node.domain = node.op_type.removeprefix("TRT_FP8"), ""
            node.input.append(zero.name)
        elif node.op_type == "DequantizeLinear" and kind != onnx.TensorProto.FLOAT:
            source = made_by.get(node.input[0])
            if source is not None and source.op_type == TO_E2M1 and source.output[0] == node.input[0]:
                out = f"{node.output[0]}.cast"
                cast[node.output[0]] = out
                nodes += [node, onnx.helper.make_node("Cast", [node.output[0]], [out], name=out, to=kind)]
                continue
        for i, name in enumerate(node.input):
            node.input[i] = cast.get(name, name)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
