"""From a backbone to a finished ONNX file: traced, its weights filled in and packed, counted."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from diffopt.files.graph import PartFile
from diffopt.graph.activations import finish
from diffopt.graph.border import bordered
from diffopt.graph.count import operators, quantized_inputs, quantized_products
from diffopt.graph.file import GraphFile
from diffopt.graph.part_files import CutPoints, part_files
from diffopt.graph.tensor import KINDS
from diffopt.graph.trace import Arguments, SizeAxes, trace
from diffopt.graph.weights import fill
from diffopt.quantization.extremes import quantizers

PRECISION = {torch.float32: "Float", torch.float16: "Half", torch.bfloat16: "BFloat16"}
NEEDS = {onnx.TensorProto.INT4: (21, 10), onnx.TensorProto.FLOAT4E2M1: (23, 11)}
"""The opset and the version of the file format that came with a type."""


@dataclass(frozen=True)
class Graph:
    opset: int
    operators: dict[str, int]
    quantized_products: int
    """Matrix products and convolutions whose weight is stored quantized."""
    quantized_inputs: int
    """Those of them whose input is quantized too."""
    unused: list[str]
    """Quantized layers that the graph has no use for."""
    bytes: int
    """Of all weights as stored."""
    parts: list[PartFile] | None = None
    """The parts of a graph that was cut, of which the counts are sums."""


def write(
    backbone: torch.nn.Module,
    inputs: Mapping[str, Any],
    path: Path,
    opset: int,
    batch_axes: Mapping[str, int] | None = None,
    arguments: Arguments = dict,
    cut: CutPoints | None = None,
    size_axes: SizeAxes | None = None,
) -> Graph:
    """Write the graph of `backbone`, plain or quantized by modelopt, to `path`; weights of 2 GiB go beside it.

    With `cut` it is written in parts, to files beside `path` of names that begin as its own.

    `inputs` are of one call, on the backbone's device; what is no tensor is a constant of the graph, and `arguments`
    makes the backbone's keyword arguments of them. `batch_axes` (input -> axis) and `size_axes` are dynamic; None: all are
    static. A graph that is cut has no `size_axes`.
    Raises GateError for weights that no graph can hold.
    """
    dtype = next((p.dtype for p in backbone.parameters() if p.is_floating_point()), torch.float32)
    for _, quantizer in quantizers(backbone):
        quantizer.trt_high_precision_dtype = PRECISION[dtype]
    with tempfile.TemporaryDirectory(dir=path.parent) as raw:
        with bordered(cut.segments if cut else ()):
            trace(backbone, inputs, Path(raw) / "model.onnx", opset, batch_axes, arguments, size_axes)
        model = onnx.load(Path(raw) / "model.onnx")
        traced = onnx.load(Path(raw) / "model.onnx") if cut else None
    finish(model.graph, KINDS[dtype])
    file = GraphFile(path)
    unused = fill(model.graph, backbone, file)
    del model.graph.value_info[:]
    opset = _say_versions(model, {i.data_type for i in file.initializers})
    stored = file.sizes
    parts = part_files(model, traced, stored, cut.calls) if cut and traced else []
    models = [m for _, m in parts] or [model]
    found = Graph(
        opset=opset,
        operators=dict(sum((Counter(operators(m)) for m in models), Counter())),
        quantized_products=sum(quantized_products(m, stored) for m in models),
        quantized_inputs=sum(quantized_inputs(m, stored) for m in models),
        unused=unused,
        bytes=file.bytes,
        parts=[part for part, _ in parts] or None,
    )
    if parts:
        file.close_parts({part.file: m for part, m in parts})
    else:
        file.close(model)
    return found


def _say_versions(model: onnx.ModelProto, kinds: set[int]) -> int:
    """The opset. Types of 4 bits need a newer one than what was traced, which no operator that is traced changed with."""
    (own,) = (o for o in model.opset_import if not o.domain)
    for kind, (opset, ir) in NEEDS.items():
        if kind in kinds:
            own.version, model.ir_version = max(own.version, opset), max(model.ir_version, ir)
    return int(own.version)
