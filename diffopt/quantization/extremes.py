"""Calibrate once: record the extremes of every quantizer input, and replay them into any max-style format.

A maximum can be taken chunk by chunk, and a calibrator that keeps maxima cannot tell the recorded extremes from the
activations they were taken of. So `replay` gives bit for bit what modelopt's own loop over the pipeline gives.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from modelopt.torch.quantization.nn import TensorQuantizer

Extremes = dict[str, torch.Tensor]
"""Quantizer name -> absolute maxima: [channels] of a linear or convolution input, [1] of an attention operand."""

CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def quantizers(model: torch.nn.Module) -> Iterator[tuple[str, TensorQuantizer]]:
    """The quantizers of a converted model, by name."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, TensorQuantizer))


def called_modules(backbone: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """What a pipeline calls: the backbone itself, by the empty name, or each of several in a ModuleDict, by its own."""
    return dict(backbone.items()) if isinstance(backbone, torch.nn.ModuleDict) else {"": backbone}


def channel_axis(module: torch.nn.Module) -> int:
    """Of a layer's input."""
    return 1 if isinstance(module, CONVOLUTIONS) else -1


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
            if channel_axis(parent) == 1:
                peak = peak.reshape(1, -1, *[1] * (parent.weight.dim() - 2))
            quantizer(peak.reshape(1, -1) if peak.dim() == 1 else peak)

    return loop
