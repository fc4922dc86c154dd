"""Calibrate once: record the extremes of every quantizer input, and replay them into any max-style format.

A maximum can be taken chunk by chunk, and a calibrator that keeps maxima cannot tell the recorded extremes from the
activations they were taken of. So `replay` gives bit for bit what modelopt's own loop over the pipeline gives.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from modelopt.torch.quantization.nn import QuantModuleRegistry, TensorQuantizer
from modelopt.torch.quantization.plugins.diffusion.diffusers import _QuantAttention

from diffopt.step_extremes import StepExtremes

Extremes = dict[str, torch.Tensor]
"""Quantizer name -> absolute maxima: [channels] of a linear or convolution input, [1] of an attention operand."""

LAYERS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
OPERANDS = ("q_bmm_quantizer", "k_bmm_quantizer", "v_bmm_quantizer")


def quantizers(model: torch.nn.Module) -> Iterator[tuple[str, TensorQuantizer]]:
    """The quantizers of a converted model, by name."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, TensorQuantizer))


def parts(backbone: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """What a pipeline calls: the backbone itself, by the empty name, or each of several in a ModuleDict, by its own."""
    return dict(backbone.items()) if isinstance(backbone, torch.nn.ModuleDict) else {"": backbone}


@contextmanager
def observed(backbone: torch.nn.Module, steps: StepExtremes | None = None) -> Iterator[Extremes]:
    """Record, while the block runs the backbone in full precision, into the mapping that is yielded.

    Keeps the extremes on the model's device and in its dtype, where a maximum is exact. `steps` is told those of
    convolution inputs after every backbone call. The backbone itself is left as it is: modelopt's own modules would
    double the time of a UNet's call on a GPU, which is bound by what Python launches.
    """
    watch = _Watch(steps)
    handles = []
    for name, module in list(backbone.named_modules()):
        if isinstance(module, LAYERS):
            handles.append(module.register_forward_pre_hook(watch.layer(name, module), with_kwargs=True))
        elif issubclass(QuantModuleRegistry.get(type(module)) or type(module), _QuantAttention):
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: watch.within.append(name)))
            handles.append(module.register_forward_hook(lambda *_: watch.leave(), always_call=True))
    for part in parts(backbone).values():
        handles.append(part.register_forward_hook(lambda *_: watch.fold()))
    try:
        with _operands_seen(watch):
            yield watch.found
    finally:
        watch.fold()
        for handle in handles:
            handle.remove()


@contextmanager
def _operands_seen(watch: "_Watch") -> Iterator[None]:
    """Show `watch` what the attention modules call torch's attention with, as modelopt's quantizers would see it."""
    own = F.scaled_dot_product_attention

    def seen(*args: Any, **kwargs: Any) -> torch.Tensor:
        if watch.within:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            watch.operands([named[n] for n in ("query", "key", "value")])
        return own(*args, **kwargs)

    F.scaled_dot_product_attention = seen
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own


class _Watch:
    """Maxima of one backbone call, folded into those of all when it ends: a kernel for all layers, not one for each."""

    def __init__(self, steps: StepExtremes | None):
        self.found: Extremes = {}
        self.steps = steps
        self._call: Extremes = {}
        self._convolutions: set[str] = set()
        self._last: tuple[str, torch.Tensor, torch.Tensor] | None = None
        self.within: list[str] = []
        """Names of the attention modules that are being called."""

    def layer(self, name: str, module: torch.nn.Module) -> Callable[..., None]:
        key, parent = f"{name}.input_quantizer", name.rpartition(".")[0]
        channel = _channel_axis(module)
        if channel == 1:
            self._convolutions.add(key)

        def record(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            if x.numel() == 0:
                return
            # Query, key and value read one tensor; nothing changes it between siblings that are called one after another.
            if self._last and self._last[0] == parent and self._last[1] is x:
                peak = self._last[2]
            else:
                peak = _peak(x, [i for i in range(x.dim()) if i != channel % x.dim()])
            self._last = (parent, x, peak)
            self._see(key, peak)

        return record

    def operands(self, tensors: list[torch.Tensor]) -> None:
        """Query, key and value of the attention module that is being called."""
        if tensors[0].is_cuda:
            peaks = list(torch._foreach_norm(tensors, math.inf))  # one kernel for all three
        else:
            peaks = [_peak(x, list(range(x.dim()))) for x in tensors]
        for name, peak in zip(OPERANDS, peaks, strict=True):
            self._see(f"{self.within[-1]}.{name}", peak.detach().reshape(1))

    def leave(self) -> None:
        """An attention module's call has ended."""
        self.within.pop()

    def _see(self, key: str, peak: torch.Tensor) -> None:
        self._call[key] = torch.maximum(self._call[key], peak) if key in self._call else peak

    def fold(self) -> None:
        """The call has ended."""
        if self.steps:
            for key in self._convolutions & self._call.keys():
                self.steps.see(key, self._call[key])
        old = [key for key in self._call if key in self.found]
        if old:
            torch._foreach_maximum_([self.found[k] for k in old], [self._call[k] for k in old])
        for key in self._call.keys() - self.found.keys():
            self.found[key] = self._call[key].clone()  # siblings share one, and it is changed in place from now on
        self._call, self._last = {}, None


def _peak(x: torch.Tensor, over: list[int]) -> torch.Tensor:
    """Absolute maxima over the axes `over`, exact and NaN where there is one, without a copy of x.

    On a GPU by one kernel that reads x once; a CPU is faster at two plain extremes.
    """
    x = x.detach()
    if not over:
        return x.abs()
    if x.is_cuda:
        found: torch.Tensor = torch.linalg.vector_norm(x, math.inf, dim=over)
        return found
    return torch.maximum(x.amax(over), x.amin(over).neg_()).abs_()


def _channel_axis(module: torch.nn.Module) -> int:
    return -1 if isinstance(module, torch.nn.Linear) or not isinstance(module, LAYERS) else 1


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
