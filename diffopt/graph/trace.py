"""Tracing a backbone to ONNX with torch's legacy exporter, which knows modelopt's quantizers.

The newer exporter fails on INT8 and FP8, and for NVFP4 writes a graph without a single quantizer. Nothing of the
weights is in what is traced: they are inputs of the graph, by name, and their quantizers are off.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from diffopt.files.graph import OUTPUT
from diffopt.graph.patches import traceable
from diffopt.models.family import prediction
from diffopt.quantization.extremes import quantizers

PREFIX = "backbone."
"""Of the names of parameters and buffers in the graph."""
BATCH = "batch"
"""The name of a dynamic batch axis."""

SizeAxes = Mapping[str, dict[int, str]]
"""Of inputs, and of the output by its name, those axes that follow from a picture's size, with names."""

Arguments = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""The backbone's keyword arguments of flat inputs: some families nest them."""


class FlatInputs(torch.nn.Module):
    """A backbone that takes the tensors among its inputs by position; what is no tensor is a constant."""

    def __init__(self, backbone: torch.nn.Module, inputs: Mapping[str, Any], arguments: Arguments = dict):
        super().__init__()
        self.backbone = backbone
        self.names = [n for n, x in inputs.items() if isinstance(x, torch.Tensor)]
        self.constants = {n: x for n, x in inputs.items() if not isinstance(x, torch.Tensor)}
        self.arguments = arguments

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        flat = self.constants | dict(zip(self.names, tensors, strict=True))
        return prediction(self.backbone(**self.arguments(flat), return_dict=False))


def trace(
    backbone: torch.nn.Module,
    inputs: Mapping[str, Any],
    path: Path,
    opset: int,
    batch_axes: Mapping[str, int] | None = None,
    arguments: Arguments = dict,
    size_axes: SizeAxes | None = None,
) -> None:
    """Write the graph of one backbone call to `path`, run on the device where backbone and inputs are.

    Parameters and buffers are inputs of the graph, called `backbone.` and their name in the state dict. Every axis is
    static, but for those that `batch_axes` names (input -> axis), and the output's first one with them, and `size_axes`.
    """
    flat = FlatInputs(backbone, inputs, arguments)
    dynamic = {name: {axis: BATCH} for name, axis in (batch_axes or {}).items()}
    if dynamic:
        dynamic[OUTPUT] = {0: BATCH}
    for name, axes in (size_axes or {}).items():
        dynamic[name] = dynamic.get(name, {}) | axes
    training = backbone.training
    with torch.inference_mode(), traceable(opset), _weights_as_they_are(backbone):
        torch.onnx.export(
            flat.eval(),
            tuple(inputs[n] for n in flat.names),
            str(path),
            input_names=flat.names,
            output_names=[OUTPUT],
            opset_version=opset,
            dynamic_axes=dynamic,
            export_params=False,
            do_constant_folding=False,  # it would fold the transposes of weights, and copy them for that
            keep_initializers_as_inputs=True,  # the exporter then does not compare all weights to find equal ones
            dynamo=False,
        )
    backbone.train(training)


@contextlib.contextmanager
def _weights_as_they_are(backbone: torch.nn.Module) -> Iterator[None]:
    """Weight quantizers off, and input quantizers of block formats traced as the operators that quantize at run time."""
    off, dynamic = [], []
    for name, quantizer in quantizers(backbone):
        if ".weight_quantizer" in name and quantizer.is_enabled:
            quantizer.disable()
            off.append(quantizer)
        elif quantizer.block_sizes and quantizer.is_enabled:
            quantizer._onnx_quantizer_type = "dynamic"
            dynamic.append(quantizer)
    try:
        yield
    finally:
        for quantizer in off:
            quantizer.enable()
        for quantizer in dynamic:
            del quantizer._onnx_quantizer_type
