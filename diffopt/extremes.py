"""Calibrate once: record the extremes of every quantizer input, and replay them into any max-style format.

A maximum can be taken chunk by chunk, and a calibrator that keeps maxima cannot tell the recorded extremes from the
activations they were taken of. So `replay` gives bit for bit what modelopt's own loop over the pipeline gives.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from modelopt.torch.quantization.conversion import replace_quant_module
from modelopt.torch.quantization.nn import TensorQuantizer

Extremes = dict[str, torch.Tensor]
"""Quantizer name -> absolute maxima: [channels] of a linear or convolution input, [1] of an attention operand."""

OBSERVED = (".input_quantizer", ".q_bmm_quantizer", ".k_bmm_quantizer", ".v_bmm_quantizer")


def quantizers(model: torch.nn.Module) -> Iterator[tuple[str, TensorQuantizer]]:
    """The quantizers of a converted model, by name."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, TensorQuantizer))


@contextmanager
def observed(model: torch.nn.Module) -> Iterator[Extremes]:
    """Record, while the block runs the model in full precision, into the mapping that is yielded.

    Converts `model` for good (every quantizer disabled); give it a model that is not used for anything else. Keeps
    the extremes on the model's device and in its dtype, where a maximum is exact.
    """
    replace_quant_module(model)
    parents = dict(model.named_modules())
    found: Extremes = {}
    handles = []
    for name, quantizer in quantizers(model):
        quantizer.disable()
        if name.endswith(OBSERVED):
            axis = _channel_axis(parents[name.rpartition(".")[0]]) if name.endswith(".input_quantizer") else None
            handles.append(quantizer.register_forward_pre_hook(_recorder(found, name, axis)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _channel_axis(module: torch.nn.Module) -> int:
    convolution = isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d)
    return 1 if convolution else -1


def _recorder(found: Extremes, name: str, axis: int | None) -> Callable[[torch.nn.Module, tuple[torch.Tensor]], None]:
    def record(_module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        x = args[0].detach().abs()
        peak = x.amax().reshape(1) if axis is None else x.movedim(axis, 0).flatten(1).amax(1)
        found[name] = torch.maximum(found[name], peak) if name in found else peak

    return record


def merge(parts: list[Extremes]) -> Extremes:
    """The extremes of all parts together. Raises ValueError when they come from different models."""
    if len({frozenset(p) for p in parts}) != 1:
        raise ValueError("the chunks observed different quantizers")
    return {name: torch.stack([p[name] for p in parts]).amax(0) for name in sorted(parts[0])}


def replay(extremes: Mapping[str, torch.Tensor]) -> Callable[[torch.nn.Module], None]:
    """A forward loop for `mtq.quantize` that shows every enabled quantizer one tensor: its recorded extremes.

    The tensor has the input's number of channels where the quantizer looks for them, and one element elsewhere.
    """

    def loop(model: torch.nn.Module) -> None:
        parents = dict(model.named_modules())
        for name, quantizer in quantizers(model):
            if name not in extremes or not quantizer.is_enabled:
                continue
            peak = extremes[name]
            parent = parents[name.rpartition(".")[0]]
            peak = peak.to(next((p.device for p in parent.parameters()), peak.device))
            if _channel_axis(parent) == 1:
                peak = peak.reshape(1, -1, *[1] * (parent.weight.dim() - 2))
            quantizer(peak.reshape(1, -1) if peak.dim() == 1 else peak)

    return loop
