"""Tracing a backbone to ONNX with torch's legacy exporter, which knows modelopt's quantizers.

The newer exporter fails on INT8 and FP8, and for NVFP4 writes a graph without a single quantizer.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.onnx import symbolic_helper
from torch.onnx.utils import register_custom_op_symbolic, unregister_custom_op_symbolic

from diffopt.block_arithmetic import simulated

ONNX_TYPES = {"Float": 1, "Half": 10, "Double": 11, "BFloat16": 16}
OUTPUT = "out"


class FlatInputs(torch.nn.Module):
    """A backbone that takes its keyword arguments as positional tensors, in the order of `names`."""

    def __init__(self, backbone: torch.nn.Module, names: list[str]):
        super().__init__()
        self.backbone = backbone
        self.names = names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.backbone(**dict(zip(self.names, tensors, strict=True)), return_dict=False)[0]
        return out


def trace(backbone: torch.nn.Module, inputs: dict[str, torch.Tensor], path: Path, opset: int) -> None:
    """Write the graph of one backbone call to `path`; every axis is static."""
    with torch.inference_mode(), simulated(), _rms_norm(opset):
        torch.onnx.export(
            FlatInputs(backbone, list(inputs)).eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=[OUTPUT],
            opset_version=opset,
            dynamo=False,
        )


@contextlib.contextmanager
def _rms_norm(opset: int) -> Iterator[None]:
    """The legacy exporter has no symbolic for aten::rms_norm."""
    register_custom_op_symbolic("aten::rms_norm", _rms_norm_symbolic, opset)
    try:
        yield
    finally:
        unregister_custom_op_symbolic("aten::rms_norm", opset)


def _rms_norm_symbolic(g: Any, x: Any, shape: Any, weight: Any = None, eps: Any = None) -> Any:
    """x / sqrt(mean(x^2) + eps) * weight, the mean in FP32 whatever the model's precision."""

    def absent(value: Any) -> bool:
        return value is None or symbolic_helper._is_none(value)

    rank = len(symbolic_helper._get_const(shape, "is", "normalized_shape"))
    dtype = x.type().scalarType()
    wide = x if dtype == "Float" else g.op("Cast", x, to_i=ONNX_TYPES["Float"])
    axes = g.op("Constant", value_t=torch.tensor(range(-rank, 0)))
    mean = g.op("ReduceMean", g.op("Mul", wide, wide), axes, keepdims_i=1)
    epsilon = torch.finfo(torch.float32).eps if absent(eps) else symbolic_helper._get_const(eps, "f", "eps")
    shifted = g.op("Add", mean, g.op("Constant", value_t=torch.tensor(epsilon, dtype=torch.float32)))
    out = g.op("Div", wide, g.op("Sqrt", shifted))
    if dtype != "Float":
        out = g.op("Cast", out, to_i=ONNX_TYPES[dtype])
    if not absent(weight):
        out = g.op("Mul", out, weight)
    return out.setType(x.type())
