"""A weight in few bits: the tensors that hold it and the nodes that give it back."""

from dataclasses import dataclass, field
from typing import Any

import onnx

from diffopt.graph.tensor import Tensor

DOMAIN = "trt"
"""Of the operators that TensorRT knows and ONNX does not."""


@dataclass
class Packed:
    """Built up by a packing function; `out` is the value that stands for the weight in the graph."""

    name: str
    """Of the weight; what is made for it is called by this and a suffix."""
    tensors: list[Tensor] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    out: str = ""

    def add(self, tensor: Tensor) -> str:
        self.tensors.append(tensor)
        return tensor.name

    def called(self, suffix: str) -> str:
        return f"{self.name}.{suffix}"

    def node(self, operator: str, inputs: list[str], *, domain: str = "", **attributes: Any) -> str:
        """Append a node with one output, which becomes `out`; numbered where an operator stands twice."""
        before = sum(n.op_type == operator for n in self.nodes)
        name = self.called(f"{operator}{f'_{before}' if before else ''}")
        self.nodes.append(onnx.helper.make_node(operator, inputs, [name], name=name, domain=domain, **attributes))
        self.out = name
        return name
