"""From a backbone to a finished ONNX file: traced, quantized weights packed, counted, checked."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from modelopt.torch._deploy.utils import torch_onnx
from modelopt.torch.quantization.export_onnx import configure_linear_module_onnx_quantizers

from diffopt.extremes import quantizers
from diffopt.graph.count import operators, quantized_products
from diffopt.graph.trace import trace
from diffopt.graph.weights import fold_int8

TWO_GIB = 2**31
PRECISION = {torch.float32: "Float", torch.float16: "Half"}


@dataclass(frozen=True)
class Graph:
    operators: dict[str, int]
    quantized_products: int


def write(backbone: torch.nn.Module, inputs: dict[str, torch.Tensor], path: Path, opset: int, name: str | None) -> Graph:
    """Write the graph of `backbone` in the format `name` (None: plain) to `path`; weights of 2 GiB go beside it."""
    dtype = next(p.dtype for p in backbone.parameters() if p.is_floating_point())
    for _, quantizer in quantizers(backbone):
        quantizer.trt_high_precision_dtype = PRECISION[dtype]
    raw = path.with_name("raw")
    raw.mkdir()
    with _onnx_quantizers(backbone, name):
        trace(backbone, inputs, raw / "model.onnx", opset)
    model = onnx.load(raw / "model.onnx")
    for file in raw.iterdir():
        file.unlink()
    raw.rmdir()
    if name == "int8_sq":
        fold_int8(model)
    elif name is not None:
        model = torch_onnx.quantize_weights(backbone, torch_onnx.optimize("backbone", torch_onnx.infer_shapes(model)))
    if model.ByteSize() < TWO_GIB:
        onnx.save(model, path)
    else:
        onnx.save(model, path, save_as_external_data=True, location="model.onnx.data")
    return Graph(operators(model), quantized_products(model))


@contextlib.contextmanager
def _onnx_quantizers(backbone: torch.nn.Module, name: str | None) -> Iterator[None]:
    """Block formats need modelopt's static quantizers for weights while they are traced."""
    if name != "nvfp4":
        yield
        return
    with configure_linear_module_onnx_quantizers(backbone):
        yield
