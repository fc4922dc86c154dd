"""Recording extremes while a backbone runs, at little more than the cost of running it.

A UNet's many small layers are bound by kernel launches, so they decide how this is written: no hooks and no converted
modules; one reduction for a tensor that siblings share; on a GPU one launch for as many tensors as fit HELD; one fold a call.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from modelopt.torch.quantization.nn import QuantModuleRegistry
from modelopt.torch.quantization.plugins.diffusion.diffusers import _QuantAttention

from diffopt.quantization.channel_peaks import CHANNELS, Raised, bits, raise_to_peaks
from diffopt.quantization.extremes import CONVOLUTIONS, Extremes, called_modules, channel_axis
from diffopt.quantization.step_extremes import StepExtremes

OPERANDS = ("q_bmm_quantizer", "k_bmm_quantizer", "v_bmm_quantizer")
HELD = {"cuda": 256 * 2**20}
"""Bytes of inputs held back for one launch of their reductions, by the type of device. None on a CPU, which reads an input
faster while its cache has it."""


Forward = Callable[..., Any]


@contextmanager
def observed(backbone: torch.nn.Module, steps: StepExtremes | None = None, *, hold: bool = True) -> Iterator[Extremes]:
    """Record, while the block runs the backbone in full precision, into the mapping that is yielded.

    It is complete when the block is left. Keeps the extremes on the model's device and in its dtype, where a maximum is
    exact. `steps` is told those of convolution inputs after every backbone call. Raises ChangedInPlace where inputs may
    be held back, and the backbone changes one after a layer has read it.
    """
    watch = _Watch(steps, HELD if hold else {})
    with ExitStack() as stack:
        for name, module in backbone.named_modules():
            if isinstance(module, (torch.nn.Linear, *CONVOLUTIONS)):
                stack.enter_context(instead(module, watch.layer(name, module)))
            elif issubclass(QuantModuleRegistry.get(type(module)) or object, _QuantAttention):
                stack.enter_context(instead(module, watch.attention(name, module)))
        for part in called_modules(backbone).values():
            stack.callback(part.register_forward_hook(lambda *_: watch.fold()).remove)
        stack.enter_context(attention_backend(AttentionBackendName.NATIVE))  # as modelopt's attention modules choose
        stack.enter_context(watch.products())
        yield watch.found
    watch.finish()


@contextmanager
def instead(module: Any, forward: Forward) -> Iterator[None]:
    """Within it, the module's forward is `forward`: half as dear a call as a hook, and there are hundreds."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


class ChangedInPlace(RuntimeError):
    """An input that was held back is no longer what the layer read."""


class _Watch:
    """Maxima of one backbone call, folded into those of all when it ends."""

    def __init__(self, steps: StepExtremes | None, room: Mapping[str, int]):
        self.found: Extremes = {}
        self.steps = steps
        self.room = room
        self._call: Extremes = {}
        self._convolutions: set[str] = set()
        self._last: tuple[str, torch.Tensor, torch.Tensor] | None = None
        self._attention: str | None = None
        self._held: dict[int, Raised] = {}  # by identity, which is safe while they live
        self._bytes = 0
        self._raised: dict[tuple[str, ...], tuple[torch.Tensor, torch.dtype]] = {}

    def layer(self, name: str, module: torch.nn.Module) -> Forward:
        key, parent = f"{name}.input_quantizer", name.rpartition(".")[0]
        forward, axis = module.forward, channel_axis(module)
        if axis == 1:
            self._convolutions.add(key)

        def watched(*args: Any, **kwargs: Any) -> Any:
            x = args[0] if args else kwargs["input"]
            last = self._last
            # Query, key and value read one tensor; nothing changes it between siblings that are called one after another.
            if last is not None and last[1] is x and last[0] == parent:
                self._see(key, last[2])
            elif x.numel() and not (axis == -1 and self._hold(key, x, x.shape[-1])):
                peak = _peak(x, axis)
                self._last = (parent, x, peak)
                self._see(key, peak)
            return forward(*args, **kwargs)

        return watched

    def attention(self, name: str, module: torch.nn.Module) -> Forward:
        forward = module.forward

        def watched(*args: Any, **kwargs: Any) -> Any:
            self._attention = name
            try:
                return forward(*args, **kwargs)
            finally:
                self._attention = None

        return watched

    @contextmanager
    def products(self) -> Iterator[None]:
        """Within it, the functions of torch that modelopt's attention quantizes the operands of are watched in attention."""
        functional = torch.nn.functional
        fused, scores, values = functional.scaled_dot_product_attention, torch.baddbmm, torch.bmm

        def watched_fused(*args: Any, **kwargs: Any) -> torch.Tensor:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            self._operands(OPERANDS, [named["query"], named["key"], named["value"]])
            return fused(*args, **kwargs)

        def watched_scores(x: torch.Tensor, query: torch.Tensor, key: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            self._operands(OPERANDS[:2], [query, key])
            return scores(x, query, key, **kwargs)

        def watched_values(weights: torch.Tensor, value: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            self._operands(OPERANDS[2:], [value])
            return values(weights, value, **kwargs)

        functional.scaled_dot_product_attention = watched_fused
        torch.baddbmm, torch.bmm = watched_scores, watched_values  # type: ignore[assignment]
        try:
            yield
        finally:
            functional.scaled_dot_product_attention = fused
            torch.baddbmm, torch.bmm = scores, values

    def _operands(self, names: tuple[str, ...], tensors: list[torch.Tensor]) -> None:
        if self._attention is None:
            return
        for name, x in zip(names, tensors, strict=True):
            key = f"{self._attention}.{name}"
            if not self._hold(key, x, CHANNELS if x.numel() % CHANNELS == 0 else x.shape[-1]):
                self._see(key, _peak(x, None))

    def _hold(self, key: str, x: torch.Tensor, channels: int) -> bool:
        """Whether x is held back, to be reduced with others."""
        held = self._held.get(id(x))
        if held and held.channels == channels and held.version == x._version:
            held.keys.append(key)
            return True
        room = self.room.get("cuda" if x.is_cuda else "cpu", 0)
        if not room or held or x.is_inference() or channels % 8 or x.data_ptr() % 16:
            return False
        # Attention's operands are [batch, heads, tokens, width] seen through [batch, tokens, heads, width].
        if not ((x.dim() == 4 and x.transpose(1, 2).is_contiguous()) or x.is_contiguous()):
            return False
        if self._bytes + x.nbytes > room:
            self._reduce()
        self._held[id(x)] = Raised(x, x._version, channels, [key])
        self._bytes += x.nbytes
        return True

    def _reduce(self) -> None:
        """What is held back, by one launch for each type and device."""
        kinds: dict[tuple[torch.dtype, torch.device], list[Raised]] = {}
        for held in self._held.values():
            if held.x._version != held.version:
                raise ChangedInPlace(f"{held.keys[0]}: its input was changed in place after the layer had read it")
            kinds.setdefault((held.x.dtype, held.x.device), []).append(held)
        for (dtype, device), tensors in kinds.items():
            for held in tensors:
                if tuple(held.keys) not in self._raised:
                    self._raised[tuple(held.keys)] = bits(held.channels, device), dtype
            raise_to_peaks([self._raised[tuple(held.keys)][0] for held in tensors], tensors)
        self._held, self._bytes = {}, 0

    def _see(self, key: str, peak: torch.Tensor) -> None:
        self._call[key] = torch.maximum(self._call[key], peak) if key in self._call else peak

    def fold(self) -> None:
        """A backbone call has ended."""
        self._reduce()
        if self.steps:
            for key in (k for k in self._call if k in self._convolutions):
                self.steps.see(key, self._call[key])
        kinds: dict[tuple[torch.dtype, torch.device], list[str]] = {}  # a mixed list is folded one by one
        for key, peak in self._call.items():
            if key in self.found:
                kinds.setdefault((peak.dtype, peak.device), []).append(key)
            else:
                self.found[key] = peak.clone()  # siblings share one, and it is changed in place from now on
        for keys in kinds.values():
            torch._foreach_maximum_([self.found[k] for k in keys], [self._call[k] for k in keys])
        self._call, self._last, self._attention = {}, None, None

    def finish(self) -> None:
        self.fold()
        for keys, (raised, dtype) in self._raised.items():
            peak = raised.view(torch.float32).to(dtype)
            for key in keys:
                one = peak.amax() if key.endswith(OPERANDS) else peak
                self.found[key] = torch.maximum(self.found[key], one) if key in self.found else one.clone()
        for key, peak in self.found.items():
            if peak.dim() == 0:
                self.found[key] = peak.reshape(1)


def _peak(x: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Absolute maxima, by channel or of all, exact and NaN where there is one, without a copy of x.

    On a GPU by one kernel that reads x once; a CPU is faster at two plain extremes.
    """
    rank = x.dim()
    over = [i for i in range(rank) if axis is None or i != axis % rank]
    if x.requires_grad:
        x = x.detach()
    if not over:
        return x.abs()
    if x.is_cuda:
        found: torch.Tensor = torch.linalg.vector_norm(x, math.inf, dim=over)
        return found
    return torch.maximum(x.amax(over), x.amin(over).neg_()).abs_()
