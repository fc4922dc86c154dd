"""The scales of a max-style format, from recorded extremes and the weights alone: modelopt's, without its walk over the model.

modelopt's SmoothQuant calibrates every linear layer once more by itself, which for SDXL's 722 takes 10 s of Python. A sweep
over alpha has many such jobs, and each needs only this arithmetic. What uses a checkpoint derives the scales again with
modelopt itself and compares them, bit for bit (`checkpoint.restore`).
"""

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.quantization.nn import TensorQuantizer

from diffopt.errors import GateError
from diffopt.formats.method import Rule
from diffopt.quantization.extremes import Extremes, quantizers
from diffopt.quantization.shared_scales import groups, smoothing

AMAX, SMOOTHING = "_amax", "_pre_quant_scale"
DEAD = 2.0**-31
"""A smoothing scale at or below it is of an input channel that no weight reads; modelopt's own guard fails on it."""
LOWEST, HIGHEST = 1e-4, 1e4
"""modelopt's limits of a smoothing scale."""


@dataclass(frozen=True)
class Quantizer:
    """One that the rules have switched on."""

    name: str
    layer: str
    weight: bool
    """Whether it is of a weight, else of an input."""
    by_channel: bool
    """Of a weight, by output channel; of a linear layer's input, by its features: it is to be smoothed."""
    scaled: bool
    """Whether it has a scale; MX formats find theirs as a tensor passes."""
    tied: tuple[str, ...] = ()
    """Quantizers whose inputs are measured as one, itself among them: those of the experts of a mixture, to modelopt."""


def _read(name: str, quantizer: TensorQuantizer, tied: Mapping[str, tuple[str, ...]]) -> Quantizer:
    layer, _, kind = name.rpartition(".")
    kinds = (kind == "weight_quantizer", quantizer.axis is not None, not quantizer.is_mx_format)
    return Quantizer(name, layer, *kinds, tied.get(name, ()))


def _tied(model: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """Input quantizers of the mixtures of experts that modelopt has found in a converted model, each with all of its place."""
    found: dict[str, tuple[str, ...]] = {}
    for name, mixture in model.named_modules():
        if hasattr(mixture, "layer_sync_moe_local_experts_amax"):
            places: dict[str, list[str]] = {}
            for i, expert in enumerate(mixture.experts):
                for inner, _ in quantizers(expert):
                    if inner.endswith("input_quantizer"):
                        places.setdefault(inner, []).append(f"{name}.experts.{i}.{inner}")
            found |= {n: tuple(names) for names in places.values() for n in names}
    return found


class Plain:
    """A backbone as it was loaded, for one quantization after another, and what rules switch on in it."""

    def __init__(self, backbone: torch.nn.Module, empty: Callable[[], torch.nn.Module]):
        """`empty` gives the backbone on the meta device."""
        self.backbone = backbone
        self._empty = empty
        self._known: dict[str, list[Quantizer]] = {}

    def switched_on(self, rules: list[Rule]) -> list[Quantizer]:
        key = json.dumps(rules)
        if key not in self._known:
            empty = self._empty()
            mtq.quantize(empty, {"quant_cfg": copy.deepcopy(rules), "algorithm": None})
            tied = _tied(empty)
            self._known[key] = [_read(name, q, tied) for name, q in quantizers(empty) if q.is_enabled]
        return self._known[key]


@torch.no_grad()
def scales(
    backbone: torch.nn.Module,
    found: Iterable[Quantizer],
    extremes: Mapping[str, torch.Tensor],
    alpha: float | None,
    share: bool = False,
) -> Extremes:
    """amax and pre-quant scale of every quantizer in `found`, by buffer name and on the CPU, as `checkpoint.state` has them.

    With `share` layers of one input have the same, as shared_scales.py says. `backbone` is the plain one, and stays it. Raises
    GateError as `check_finite` does, and for a layer that cannot be smoothed.
    """
    check_finite(extremes)
    known = {q.name: q for q in found if q.scaled}
    extremes = {**extremes, **{q.name: x for q in known.values() if (x := _widest(q, extremes)) is not None}}
    weighted = [q.layer for q in known.values() if q.weight]
    together = {name: group for group in groups(weighted, extremes) for name in group} if share else {}
    state: Extremes = {}
    for q in known.values():
        weights = [_weight(backbone, name) for name in together.get(q.layer, [q.layer])] if q.weight or q.by_channel else []
        if not q.weight and q.by_channel:
            assert alpha is not None
            if q.name in extremes:
                state |= _smoothed(q, _weight(backbone, q.layer), weights, extremes[q.name], alpha)
        elif q.weight:
            entering = known.get(f"{q.layer}.input_quantizer")
            if not (entering and entering.by_channel and entering.name in extremes):
                own = [_weight(backbone, q.layer)] if q.by_channel else weights
                state[f"{q.name}.{AMAX}"] = torch.stack([_amax(weight, q.by_channel) for weight in own]).amax(0)
        elif q.name in extremes:
            state[f"{q.name}.{AMAX}"] = extremes[q.name].amax()
    return {name: x.cpu().contiguous() for name, x in sorted(state.items())}


def _widest(q: Quantizer, extremes: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Of what was seen of it and of those that it is tied to; None where it is tied to none, or nothing was."""
    there = [extremes[n] for n in q.tied if n in extremes]
    return torch.stack(there).amax(0) if there else None


def check_finite(extremes: Mapping[str, torch.Tensor]) -> None:
    """Raises GateError for extremes that are not finite, as an overflow in a 16-bit model leaves."""
    if broken := [name for name, x in extremes.items() if not torch.isfinite(x).all()]:
        raise GateError(
            f"quantize: {broken[0]} saw inf or NaN in calibration (got {len(broken)} such); set another model.dtype"
        )


def _amax(weight: torch.Tensor, by_channel: bool) -> torch.Tensor:
    if not by_channel:
        return torch.maximum(weight.max().abs(), weight.min().abs())
    over = list(range(1, weight.dim()))
    found = torch.maximum(weight.amax(over, keepdim=True).abs(), weight.amin(over, keepdim=True).abs())
    return found.squeeze() if found.numel() == 1 else found


def _weight(backbone: torch.nn.Module, name: str) -> torch.Tensor:
    layer: Any = backbone.get_submodule(name)
    found: torch.Tensor = layer.weight
    return found


def _smoothed(
    entering: Quantizer, weight: torch.Tensor, together: list[torch.Tensor], peak: torch.Tensor, alpha: float
) -> Extremes:
    """In the order of operations, and the types, of modelopt 0.47's `smoothquant`, since they decide the last bits."""
    peak = peak.to(weight.device).float()
    scale = smoothing(together, peak, alpha)
    if scale.min() <= DEAD:
        raise GateError(
            f"quantize: {entering.layer} has an input channel that no weight reads (got a smoothing scale of "
            f"{scale.min():.3g}); exclude it with format.exclude, or take format=int8"
        )
    scale = scale.clamp(LOWEST, HIGHEST)
    smoothed = (weight * (1.0 / scale)[None, :]).to(weight.dtype)
    return {
        f"{entering.name}.{AMAX}": (peak.to(weight.dtype) * scale).amax().to(weight.dtype),
        f"{entering.name}.{SMOOTHING}": scale.to(weight.dtype),
        f"{entering.layer}.weight_quantizer.{AMAX}": _amax(smoothed, by_channel=True),
    }
