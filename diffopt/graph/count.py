"""Counting the quantizers of a graph: an export that lost them looks like a success."""

from collections import Counter
from fnmatch import fnmatch

import onnx

QUANTIZE = ("QuantizeLinear", "TRT_FP8QuantizeLinear", "TRT_FP4DynamicQuantize")
DEQUANTIZE = ("DequantizeLinear", "TRT_FP8DequantizeLinear")
MATRIX = ("MatMul", "Gemm", "Conv")


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator that quantizes or dequantizes stands in the graph."""
    found = Counter(n.op_type for n in model.graph.node)
    return {op: found[op] for op in (*QUANTIZE, *DEQUANTIZE) if found[op]}


def quantized_products(model: onnx.ModelProto) -> int:
    """Matrix products both of whose operands come, through shape operators at most, from a dequantize node."""
    made_by = {o: n for n in model.graph.node for o in n.output}

    def dequantized(name: str) -> bool:
        node = made_by.get(name)
        if node is None:
            return False
        if node.op_type in DEQUANTIZE:
            return True
        return node.op_type in ("Transpose", "Reshape", "Cast") and dequantized(node.input[0])

    return sum(all(dequantized(i) for i in n.input[:2]) for n in model.graph.node if n.op_type in MATRIX)


def matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(name, p) for p in patterns)
