"""A simulated backbone as plain modules, which torch.compile takes without a break: its own layers, rounding their inputs."""

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from modelopt.torch.opt.dynamic import DynamicModule

from diffopt.quantization.rounding import Rounding, rounding

DISPATCH = "dispatch_attention_fn"
SIBLINGS = 8
"""Layers before one, among which those are sought that round the same tensor."""


def traceable(model: torch.nn.Module) -> None:
    """Make of a folded backbone one that modelopt has no part in and that computes the same, in place.

    Raises ValueError, and leaves it as it is, for one with quantizers that `rounding` does not know or where attention cannot
    be reached.
    """
    layers = {m: rounding(m.input_quantizer) for m in model.modules() if hasattr(m, "input_quantizer")}
    for name, module in model.named_modules():
        for kind in ("weight_quantizer", "output_quantizer", "softmax_quantizer", "bmm2_output_quantizer"):
            if getattr(getattr(module, kind, None), "is_enabled", False):
                raise ValueError(f"{name} has a {kind}")
    attention = {m: _operands(m) for m in model.modules() if _rounds_products(m)}
    low_rank = {m: _low_rank(m) for m in layers}
    layers = _shared({n: m for n, m in model.named_modules() if m in layers}, layers)
    for module in [m for m in model.modules() if isinstance(m, DynamicModule)]:
        while isinstance(module, DynamicModule):
            module.export()
    for module in list(model.modules()):
        for child in [n for n, _ in module.named_children() if n.endswith("_quantizer")]:
            delattr(module, child)
    for layer, entering in layers.items():
        if entering is not None:
            _round_input(layer, entering, low_rank[layer])
    for module, operands in attention.items():
        module.rounded_operands = operands
        own: Any = module.processor
        module.processor = _processor(own.__class__)(own, operands)


def _shared(names: dict[str, Any], roundings: dict[Any, Rounding | None]) -> dict[Any, Rounding | None]:
    """One rounding for the layers of one parent that have the same: query, key and value round one tensor, and a compiler sees
    that it is the same only where the scales are one tensor too."""
    known: list[tuple[str, Rounding]] = []
    found: dict[Any, Rounding | None] = {}
    for name, layer in names.items():
        own, parent = roundings[layer], name.rpartition(".")[0]
        if own is not None:
            twins = (r for p, r in known[-SIBLINGS:] if p == parent and own.same(r))
            own = next(twins, own)
            known.append((parent, own))
        found[layer] = own
    return found


def _rounds_products(module: Any) -> bool:
    found: bool = getattr(getattr(module, "q_bmm_quantizer", None), "is_enabled", False)
    return found


def _low_rank(layer: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """SVDQuant's A [rank, in] and B [out, rank]."""
    quantizer: Any = getattr(layer, "weight_quantizer", None)
    if getattr(quantizer, "svdquant_lora_a", None) is None:
        return None
    return quantizer.svdquant_lora_a.detach(), quantizer.svdquant_lora_b.detach()


def _round_input(layer: Any, entering: Rounding, low_rank: tuple[torch.Tensor, torch.Tensor] | None) -> None:
    layer.entering = entering
    if low_rank:
        layer.register_buffer("down", low_rank[0])
        layer.register_buffer("up", low_rank[1])
    kind: Any = type(layer)
    layer.__class__ = _rounding(kind, beside=low_rank is not None)


@cache
def _rounding(cls: type[torch.nn.Module], beside: bool) -> type[torch.nn.Module]:
    """The class of layers of `cls` that round their input, one for each, so that blocks share what is compiled."""
    parent: Any = cls

    class Rounded(parent):  # type: ignore[misc]
        def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            found: torch.Tensor = parent.forward(self, self.entering(input), *args, **kwargs)
            return found

    class RoundedBesideLowRank(parent):  # type: ignore[misc]
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            smooth = self.entering.smooth(input)
            low = torch.nn.functional.linear(torch.nn.functional.linear(smooth, self.down), self.up)
            found: torch.Tensor = parent.forward(self, self.entering.smoothed(smooth)) + low
            return found

    found: type[torch.nn.Module] = RoundedBesideLowRank if beside else Rounded
    return found


class Operands(torch.nn.Module):
    """Rounds query, key and value."""

    def __init__(self, roundings: list[Rounding | None]):
        super().__init__()
        self.each = torch.nn.ModuleList([r or torch.nn.Identity() for r in roundings])

    def forward(self, *operands: torch.Tensor) -> list[torch.Tensor]:
        return [r(x) for r, x in zip(self.each, operands, strict=True)]


def _operands(attention: Any) -> Operands:
    processor = attention.processor
    call = type(processor).__call__
    code = getattr(call, "__code__", None)
    if code is None or DISPATCH not in code.co_names or not hasattr(processor, "_attention_backend"):
        raise ValueError(f"{type(processor).__name__} does not ask diffusers for its attention, whose operands are rounded")
    return Operands([rounding(getattr(attention, f"{x}_bmm_quantizer")) for x in "qkv"])


@cache
def _processor(cls: type) -> Callable[[Any, Operands], Any]:
    """Makes of a processor of `cls` one whose call to diffusers' attention has its operands rounded.

    The function is the processor's own with another `dispatch_attention_fn`: diffusers' module stays as it is, and every layer
    has the same code. A processor hands its `_attention_backend` on, which is what rounds.
    """
    call: Any = cls.__call__
    dispatch = call.__globals__[DISPATCH]

    def rounded(query: Any, key: Any, value: Any, *args: Any, backend: Any = None, **how: Any) -> Any:
        return dispatch(*backend(query, key, value), *args, backend=AttentionBackendName.NATIVE, **how)

    own = FunctionType(
        call.__code__, {**call.__globals__, DISPATCH: rounded}, call.__name__, call.__defaults__, call.__closure__
    )
    own.__kwdefaults__ = call.__kwdefaults__
    made: Any = type(f"Rounded{cls.__name__}", (cls,), {"__call__": own})

    def of(processor: Any, operands: Operands) -> Any:
        found = made.__new__(made)
        found.__dict__ |= processor.__dict__ | {"_attention_backend": operands}
        return found

    return of
