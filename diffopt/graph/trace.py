"""Tracing a backbone to ONNX with torch's legacy exporter, which knows modelopt's quantizers.

The newer exporter fails on INT8 and FP8, and for NVFP4 writes a graph without a single quantizer. Nothing of the
weights is in what is traced: they are inputs of the graph, by name, and their quantizers are off.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from diffopt.extremes import quantizers
from diffopt.graph.patches import traceable

OUTPUT = "out"
PREFIX = "backbone."
"""Of the names of parameters and buffers in the graph."""
BATCH = "batch"
"""The name of a dynamic batch axis."""


class FlatInputs(torch.nn.Module):
    """A backbone that takes its keyword arguments as positional tensors, in the order of `names`."""

    def __init__(self, backbone: torch.nn.Module, names: list[str]):
        super().__init__()
        self.backbone = backbone
        self.names = names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.backbone(**dict(zip(self.names, tensors, strict=True)), return_dict=False)[0]
        return out


def trace(
    backbone: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    path: Path,
    opset: int,
    batch_axes: Mapping[str, int] | None = None,
) -> None:
    """Write the graph of one backbone call to `path`, run on the device where backbone and inputs are.

    Parameters and buffers are inputs of the graph, called `backbone.` and their name in the state dict. Every axis is
    static, but for those that `batch_axes` names (input -> axis), and the output's first one with them.
    """
    dynamic = {name: {axis: BATCH} for name, axis in (batch_axes or {}).items()}
    if dynamic:
        dynamic[OUTPUT] = {0: BATCH}
    training = backbone.training
    with torch.inference_mode(), traceable(opset), _weights_as_they_are(backbone):
        torch.onnx.export(
            FlatInputs(backbone, list(inputs)).eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
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
