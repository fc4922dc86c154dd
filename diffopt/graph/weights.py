"""Parameters of a traced graph: its inputs become initializers, one at a time, those of quantized layers packed."""

from collections.abc import Mapping
from typing import Any

import onnx
import torch

from diffopt.errors import GateError
from diffopt.graph.file import GraphFile
from diffopt.graph.packing import pack
from diffopt.graph.tensor import tensor
from diffopt.graph.trace import PREFIX


def fill(graph: onnx.GraphProto, backbone: torch.nn.Module, file: GraphFile) -> list[str]:
    """Give `graph`, as traced, the backbone's parameters and buffers: tensors go to `file`, nodes are replaced in place.

    A quantized matrix is a right operand [in, out] of MatMul, and a Gemm that it feeds becomes MatMul and Add, for
    which runtimes have low-precision kernels. Returns the names of quantized layers that the graph has no use for, like
    those of Qwen-Image's last block that make a text nobody reads. Raises GateError where two layers share a weight but
    not its scale.
    """
    wanted = [i.name for i in graph.input if i.name.startswith(PREFIX)]
    values = _values(backbone)
    packers = _quantizers(backbone)
    readers: dict[str, list[onnx.NodeProto]] = {name: [] for name in wanted}
    for node in graph.node:
        for name in set(node.input) & readers.keys():
            readers[name].append(node)
    made: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    dropped: set[int] = set()
    for name in wanted:
        value, after = values[name], readers[name]
        transposed = bool(after) and all(n.op_type == "Transpose" and _swaps(n) for n in after)
        if transposed:
            dropped |= {id(n) for n in after}
            renamed |= {n.output[0]: name for n in after}
        if (quantizer := packers.get(id(value), (None, None))[1]) is None:
            file.add(tensor(name, value.T if transposed else value))
            continue
        products = [n for n in after if n.op_type == "Gemm" and _plain_gemm(n)]
        packed = pack(name, value, quantizer, transposed or bool(products))
        for node in products:
            node.op_type = _SPLIT
        renamed |= {n.output[0]: packed.out for n in after if transposed} | {name: packed.out}
        made += packed.nodes
        for part in packed.tensors:
            file.add(part)
    kept = [part for n in graph.node if id(n) not in dropped for part in _split(n)]
    for node in kept:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    del graph.node[:]
    graph.node.extend([*made, *kept])
    inputs = [i for i in graph.input if not i.name.startswith(PREFIX)]
    del graph.input[:]
    graph.input.extend(inputs)
    read = {id(values[name]) for name in wanted}
    return [layer for key, (layer, _) in packers.items() if key not in read]


def _values(backbone: torch.nn.Module) -> Mapping[str, torch.Tensor]:
    """Parameters and buffers by the graph's names. keep_vars: the very tensors, by which shared ones are found."""
    return {PREFIX + name: x for name, x in backbone.state_dict(keep_vars=True).items() if isinstance(x, torch.Tensor)}


def _quantizers(backbone: torch.nn.Module) -> dict[int, tuple[str, Any]]:
    """Layers and their enabled weight quantizers by the identity of the weight."""
    found: dict[int, tuple[str, Any]] = {}
    for name, module in backbone.named_modules():
        quantizer = getattr(module, "weight_quantizer", None)
        weight = module._parameters.get("weight")
        if quantizer is None or weight is None or not _enabled(quantizer):
            continue
        first, other = found.setdefault(id(weight), (name, quantizer))
        if other is not quantizer and not _same(other, quantizer):
            raise GateError(
                f"export: {first} and {name} share a weight, but quantize it differently (got two scales); exclude both"
            )
    return found


def _enabled(quantizer: Any) -> bool:
    parts = list(quantizer) if isinstance(quantizer, torch.nn.Sequential) else [quantizer]
    return all(q.is_enabled for q in parts)


def _same(one: Any, other: Any) -> bool:
    a, b = (dict(q.named_buffers()) for q in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


_SPLIT = "diffopt.split"


def _swaps(node: onnx.NodeProto) -> bool:
    (perm,) = (list(a.ints) for a in node.attribute)
    return perm == [1, 0]


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


def _split(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    if node.op_type != _SPLIT:
        return [node]
    product = f"{node.output[0]}.product"
    return [
        onnx.helper.make_node("MatMul", list(node.input[:2]), [product], name=f"{node.name}.matmul"),
        onnx.helper.make_node("Add", [product, node.input[2]], list(node.output), name=f"{node.name}.bias"),
    ]
