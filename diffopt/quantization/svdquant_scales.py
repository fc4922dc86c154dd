"""SVDQuant with the scales that servers can store: one low-rank projection for layers of one input, and numbers of BF16.

Servers that have q, k and v in one product read one smoothing scale and one projection down for the three. Others keep the
scales in BF16 and divide by the smoothing scale. What a file cannot hold is chosen so while calibrating, so that simulation,
pictures and file agree.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from modelopt.torch.quantization import model_calib

from diffopt.errors import GateError
from diffopt.quantization.block_codes import tensor_scale
from diffopt.quantization.block_fake_quant import E2M1_MAX, E4M3_MAX
from diffopt.quantization.low_rank import Alternation, Parts, Smoothed, start
from diffopt.quantization.shared_scales import groups
from diffopt.quantization.weight_scales import ragged

Svd = Callable[[torch.Tensor, int], Parts]
"""modelopt's."""


class Settled:
    """How one search's findings are changed. modelopt smooths all layers first, and takes the low-rank parts out after."""

    def __init__(self, model: torch.nn.Module, share: bool, round: bool, alternation: Alternation | None):
        self.model, self.share, self.round, self.alternation = model, share, round, alternation
        self.together: dict[str, list[str]] = {}
        """By layer those of its input, itself among them; known once the search has seen the inputs."""
        self._names: dict[torch.nn.Module, str] = {}
        self._waiting: dict[str, torch.Tensor] = {}
        self._parts: dict[str, Parts] = {}

    def smooth(self, apply: Callable[..., None], layer: Any, scale: torch.Tensor) -> None:
        """Smooth a layer, or once all of its group have been found, these by the geometric mean of their scales [in]."""
        if not self._names:
            self._look()
        name = self._names[layer]
        group = self.together.get(name, [name])
        self._waiting[name] = scale.float()
        if not {*group} <= {*self._waiting}:
            return
        found = [self._waiting[n] for n in group]
        shared = torch.stack([x.log2() for x in found]).mean(0).exp2() if len(found) > 1 else found[0]
        for other in group:
            apply(self.model.get_submodule(other), power_of_two(shared) if self.round else shared)

    def split(self, svd: Svd, weight: torch.Tensor, rank: int) -> Parts:
        """Those of a weight, or of all weights of its group one under the other: one A for all."""
        name = next(n for n, m in self.model.named_modules() if _own(m) == weight.data_ptr())
        if name not in self._waiting:
            raise unreached(name)
        group = self.together.get(name, [name])
        if len(group) == 1:
            return self._fitted(name, weight, rank, svd)
        if name not in self._parts:
            layers: list[Any] = [self.model.get_submodule(n) for n in group]
            weights = [x.weight.data for x in layers]
            whole = torch.cat(weights)
            b, a = self._fitted(name, whole, rank, svd)
            rows = b.split([len(x) for x in weights])
            self._parts |= {n: (own.contiguous(), a.contiguous()) for n, own in zip(group, rows, strict=True)}
        return self._parts.pop(name)

    def _fitted(self, name: str, weight: torch.Tensor, rank: int, svd: Svd) -> Parts:
        if not self.alternation:
            return svd(weight, rank)
        layer: Any = self.model.get_submodule(name)
        smoothed = Smoothed(name, weight, layer.input_quantizer.pre_quant_scale, self._peak)
        # Those that stay as they start are modelopt's, which pads the parts of a weight of no higher rank.
        stays = ragged(weight) or rank > min(weight.shape)
        return self.alternation(smoothed, svd(weight, rank) if stays else start(weight, rank))

    def _peak(self, weight: torch.Tensor) -> torch.Tensor:
        amax = weight.abs().amax().float()
        return next_in_bfloat16(amax) if self.round else amax

    @torch.no_grad()
    def finish(self) -> None:
        """The maxima of the calibrated weights: of a group the largest, and such that a tensor's scale is a number of BF16."""
        for group in [*{id(x): x for x in self.together.values()}.values()]:
            shared: list[Any] = [self.model.get_submodule(n).weight_quantizer for n in group]
            largest = torch.stack([q.amax for q in shared]).amax(0)
            for one in shared:
                one.amax = largest
        for layer in self._names if self.round else ():
            quantizer: Any = layer.weight_quantizer
            amax = next_in_bfloat16(quantizer.amax)
            quantizer.reset_amax()  # which keeps its precision
            quantizer.amax = amax

    def _look(self) -> None:
        searched: dict[str, Any] = {n: m for n, m in self.model.named_modules() if hasattr(m, "awq_lite")}
        self._names = {m: n for n, m in searched.items()}
        if self.share:
            layers = {n: m for n, m in searched.items() if m.awq_lite.is_enabled}
            inputs = {f"{n}.input_quantizer": m.awq_lite.act_scale for n, m in layers.items()}
            for group in groups(layers, inputs):
                self.together |= dict.fromkeys(group, group)


def _own(layer: Any) -> int | None:
    """Where a quantized layer's weight lies."""
    return layer.weight.data_ptr() if hasattr(layer, "weight_quantizer") else None


def unreached(name: str) -> GateError:
    """Of a layer that a search cannot have a scale for: by NaN it would be quantized without its search."""
    return GateError(
        f"quantize: nothing finite reached {name} in calibration (got no scale); exclude it, or set another model.dtype"
    )


@contextmanager
def settled(model: torch.nn.Module, share: bool, round: bool, alternation: Alternation | None) -> Iterator[None]:
    """Within it, modelopt's SVDQuant of `model` shares and rounds its scales, and fits its low-rank parts anew; nothing is
    changed where none of it is wanted."""
    if not (share or round or alternation):
        yield
        return
    how = Settled(model, share, round, alternation)
    apply, svd = model_calib.apply_pre_quant_scale_and_smooth, model_calib.svd
    model_calib.apply_pre_quant_scale_and_smooth = lambda layer, scale: how.smooth(apply, layer, scale)
    model_calib.svd = lambda weight, rank: how.split(svd, weight, rank)
    try:
        yield
    finally:
        model_calib.apply_pre_quant_scale_and_smooth, model_calib.svd = apply, svd
    how.finish()


def power_of_two(scale: torch.Tensor) -> torch.Tensor:
    """The nearest by ratio, FP32: it and its inverse are numbers of BF16, and multiplying by it loses nothing."""
    return scale.float().log2().round().exp2()


def next_in_bfloat16(amax: torch.Tensor) -> torch.Tensor:
    """FP32, of amax's shape: the least maximum from this one on by which NVFP4's scale of the tensor is a number of BF16."""
    scale = tensor_scale(amax)
    up = (scale.view(torch.int32) + 0xFFFF) & ~0xFFFF  # its lower half is what BF16 does not have
    return (up.view(torch.float32) * (E2M1_MAX * E4M3_MAX)).expand(amax.shape).clone()


def alike(names: Sequence[str], factors: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """By name those of `names` that have the same factor A, itself among them: of a group, or it alone."""
    found: dict[bytes, list[str]] = {}
    for name in names:
        raw = factors[name].contiguous().view(torch.uint8).cpu().numpy().tobytes()
        found.setdefault(raw, []).append(name)
    return {name: group for group in found.values() for name in group}
