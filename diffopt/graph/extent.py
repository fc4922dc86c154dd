"""Types and shapes of what is inside a traced graph, for given shapes of its inputs."""

from collections.abc import Collection, Mapping, Sequence

import onnx
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from diffopt.graph.border import BORDER
from diffopt.graph.count import DEQUANTIZE, QUANTIZE

Shapes = Mapping[str, Sequence[int]]
"""By the name of an input."""
Extent = tuple[int, tuple[int, ...]]
"""onnx.TensorProto.DataType and the shape."""


def extents(model: onnx.ModelProto, inputs: Shapes, names: Collection[str]) -> dict[str, Extent]:
    """Of the tensors `names` of a graph as traced, which still has its weights as inputs.

    onnx's own inference loses track of shapes that the graph computes, onnxruntime's does not.
    """
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for node in plain.graph.node:
        if node.op_type in (BORDER, *QUANTIZE, *DEQUANTIZE):  # of their operands the first has the extent of the result
            node.CopyFrom(onnx.helper.make_node("Identity", node.input[:1], node.output[:1], name=node.name))
    for value in plain.graph.input:
        for axis, size in zip(value.type.tensor_type.shape.dim, inputs.get(value.name, ()), strict=False):
            axis.Clear()
            axis.dim_value = size
    found = SymbolicShapeInference.infer_shapes(plain, auto_merge=True).graph
    types = {v.name: v.type.tensor_type for v in [*found.value_info, *found.input, *found.output]}
    return {n: (types[n].elem_type, tuple(d.dim_value for d in types[n].shape.dim)) for n in names}
