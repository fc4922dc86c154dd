"""From a backbone to a finished ONNX file: traced, quantized weights packed, counted, checked."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from modelopt.onnx.export.fp8_exporter import FP8QuantExporter
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
        with _softmax_as_simulated(backbone):
            model = torch_onnx.quantize_weights(backbone, torch_onnx.optimize("backbone", torch_onnx.infer_shapes(model)))
        _standard_domains(model)
    if model.ByteSize() < TWO_GIB:
        onnx.save(model, path)
    else:
        onnx.save(model, path, save_as_external_data=True, location="model.onnx.data")
    return Graph(operators(model), quantized_products(model))


@contextlib.contextmanager
def _softmax_as_simulated(backbone: torch.nn.Module) -> Iterator[None]:
    """modelopt's exporter quantizes what every Softmax puts out, even where attention is not quantized at all.

    The graph would then not compute what was scored. With quantized attention it stays: TensorRT's FP8 attention
    kernels ask for it, and its scale, 1 / 448, covers the 0..1 that a softmax can be.
    """
    attention = any(q.is_enabled for n, q in quantizers(backbone) if n.endswith("_bmm_quantizer"))
    insert = FP8QuantExporter._insert_qdq_after_softmax
    if not attention:
        FP8QuantExporter._insert_qdq_after_softmax = staticmethod(lambda *_, **__: 0)
    try:
        yield
    finally:
        FP8QuantExporter._insert_qdq_after_softmax = staticmethod(insert)


def _standard_domains(model: onnx.ModelProto) -> None:
    """modelopt leaves ONNX's own quantize operators in TensorRT's domain, and types that no longer hold."""
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.domain = ""
    del model.graph.value_info[:]


@contextlib.contextmanager
def _onnx_quantizers(backbone: torch.nn.Module, name: str | None) -> Iterator[None]:
    """Block formats need modelopt's static quantizers for weights while they are traced."""
    if name != "nvfp4":
        yield
        return
    with configure_linear_module_onnx_quantizers(backbone):
        yield
