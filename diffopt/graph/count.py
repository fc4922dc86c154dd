"""Counting the quantizers of a graph: an export that lost them looks like a success."""

from collections import Counter
from collections.abc import Collection, Mapping

import onnx

QUANTIZE = ("QuantizeLinear", "TRT_FP8QuantizeLinear", "TRT_FP4DynamicQuantize", "TRT_MXFP8DynamicQuantize")
DEQUANTIZE = ("DequantizeLinear", "TRT_FP8DequantizeLinear", "TRT_MXFP8DequantizeLinear")
MATRIX = ("MatMul", "Gemm", "Conv")
SHAPE = ("Transpose", "Reshape", "Cast")


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator that quantizes or dequantizes stands in the graph."""
    found = Counter(n.op_type for n in model.graph.node)
    return {op: found[op] for op in (*QUANTIZE, *DEQUANTIZE) if found[op]}


def quantized_products(model: onnx.ModelProto, stored: Collection[str] = ()) -> int:
    """Matrix products and convolutions with a weight that is stored quantized: it comes from a dequantize node, out of
    an initializer or one of the names `stored` of those that the model does not hold yet.

    Shape operators may stand between. Products of two activations, as in attention, are not counted. Whether the
    input is quantized too is the format's affair: `quantized_inputs` says of how many it is.
    """
    return len(_quantized(model, stored))


def quantized_inputs(model: onnx.ModelProto, stored: Collection[str] = ()) -> int:
    """How many of `quantized_products` have a quantized input too."""
    made_by = _made_by(model)
    return sum(_dequantized(made_by, node.input[0]) for node in _quantized(model, stored))


def _quantized(model: onnx.ModelProto, stored: Collection[str]) -> list[onnx.NodeProto]:
    made_by = _made_by(model)
    constants = {*stored, *(i.name for i in model.graph.initializer)}
    constants |= {o for n in model.graph.node if n.op_type == "Constant" for o in n.output}

    def constant(name: str) -> bool:
        node = made_by.get(name)
        if name in constants or node is None:
            return name in constants
        return node.op_type in (*SHAPE, *QUANTIZE, *DEQUANTIZE) and constant(node.input[0])

    products = [n for n in model.graph.node if n.op_type in MATRIX]
    return [n for n in products if _dequantized(made_by, n.input[1]) and constant(n.input[1])]


def _made_by(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {o: n for n in model.graph.node for o in n.output}


def _dequantized(made_by: Mapping[str, onnx.NodeProto], name: str) -> bool:
    node = made_by.get(name)
    if node is None:
        return False
    return node.op_type in DEQUANTIZE or (node.op_type in SHAPE and _dequantized(made_by, node.input[0]))
