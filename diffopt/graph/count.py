"""Counting the quantizers of a graph: an export that lost them looks like a success."""

from collections import Counter

import onnx

QUANTIZE = ("QuantizeLinear", "TRT_FP8QuantizeLinear", "TRT_FP4DynamicQuantize")
DEQUANTIZE = ("DequantizeLinear", "TRT_FP8DequantizeLinear")
MATRIX = ("MatMul", "Gemm", "Conv")
SHAPE = ("Transpose", "Reshape", "Cast")


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator that quantizes or dequantizes stands in the graph."""
    found = Counter(n.op_type for n in model.graph.node)
    return {op: found[op] for op in (*QUANTIZE, *DEQUANTIZE) if found[op]}


def quantized_products(model: onnx.ModelProto) -> int:
    """Matrix products of a quantized input with a quantized weight: both from a dequantize node, one of a constant.

    Shape operators may stand between. Attention's products, of two activations, are not counted.
    """
    made_by = {o: n for n in model.graph.node for o in n.output}
    constants = {i.name for i in model.graph.initializer}
    constants |= {o for n in model.graph.node if n.op_type == "Constant" for o in n.output}

    def dequantized(name: str) -> bool:
        node = made_by.get(name)
        if node is None:
            return False
        return node.op_type in DEQUANTIZE or (node.op_type in SHAPE and dequantized(node.input[0]))

    def constant(name: str) -> bool:
        node = made_by.get(name)
        if name in constants or node is None:
            return name in constants
        return node.op_type in (*SHAPE, *QUANTIZE, *DEQUANTIZE) and constant(node.input[0])

    products = [n.input[:2] for n in model.graph.node if n.op_type in MATRIX]
    return sum(all(map(dequantized, pair)) and any(map(constant, pair)) for pair in products)
