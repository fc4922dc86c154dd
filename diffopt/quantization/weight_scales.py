"""Block scales of weights that a search found: beside what a calibration on maxima gives, and put where a backbone has that.
With them go the weights themselves where these were not rounded to the nearest.

NVFP4's are kept as the E4M3 codes that every file of such a weight has, INT4's as maxima.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from modelopt.torch.quantization.nn import SequentialQuantizer, StaticBlockScaleQuantizer
from modelopt.torch.quantization.nn.modules.quant_linear import SVDQuantTensorQuantizer

from diffopt.formats.method import Weights
from diffopt.quantization import block_search, grid, static_blocks
from diffopt.quantization.block_fake_quant import BLOCK, E4M3_MAX
from diffopt.quantization.hessian import smoothed

CODES, MAXIMA = "._block_scales", "._block_amax"
"""End the names of what `find` gives: E4M3 [out, in / 16] of NVFP4, and of INT4 [blocks, 1] in the model's dtype."""
ROUNDED = "._weight_codes"
"""Ends the name of a weight that was rounded otherwise than to the nearest, gptq.py's: its codes, as grid.py has them."""

Found = dict[str, torch.Tensor]


class Search:
    """How the scales of a format's weights are sought."""

    def __init__(self, kind: Weights, hessians: Mapping[str, torch.Tensor], keep: bool = False):
        """`hessians` by layer, as `hessian.merge` gives them: needed where `kind` is local_hessian. With `keep` scales of
        maxima are given too: where weights will be rounded by them, and then have others."""
        self.kind = kind
        self._hessians = hessians
        self._keep = keep

    @property
    def seeks(self) -> bool:
        """Whether its scales are not those of maxima, which every calibration gives and NVFP4 finds anew."""
        return self.kind != "max" or self._keep

    def nvfp4(self, name: str, weight: torch.Tensor, amax: torch.Tensor, smoothing: torch.Tensor | None = None) -> Found:
        """Of the layer `name`, its weight [out, in] with this maximum; its input is multiplied by `smoothing` [in] before."""
        return {f"{name}.weight_quantizer{CODES}": self._codes(weight, amax, self.hessian(name, smoothing)).cpu()}

    def int4(self, name: str, weight: torch.Tensor, amax: torch.Tensor, smoothing: torch.Tensor | None = None) -> Found:
        found = block_search.int4(weight, amax, self.hessian(name, smoothing))
        return {f"{name}.weight_quantizer{MAXIMA}": found.cpu().contiguous()}

    def scales(self, weight: torch.Tensor, amax: torch.Tensor, hessian: torch.Tensor | None) -> torch.Tensor:
        """FP32 [out, in / 16]: what NVFP4's numbers in the blocks of this weight, with this maximum, are multiplied by."""
        most = static_blocks.FOUR_OVER_SIX_MAX if self.kind == "four_over_six" else E4M3_MAX
        return self._codes(weight, amax, hessian).float() * static_blocks.tensor_scale(amax, most)

    def hessian(self, name: str, smoothing: torch.Tensor | None) -> torch.Tensor | None:
        """FP32 [in / 16, 16, 16], of the layer's smoothed inputs; None where the squared error of the weights is sought."""
        if self.kind != "local_hessian":
            return None
        found = self._hessians[name]
        return found if smoothing is None else smoothed(found, smoothing.detach().to(found.device))

    def _codes(self, weight: torch.Tensor, amax: torch.Tensor, hessian: torch.Tensor | None) -> torch.Tensor:
        if self.kind == "max":
            return static_blocks.codes(weight.unflatten(1, (-1, BLOCK)).abs().amax(-1), amax)
        if self.kind == "four_over_six":
            return block_search.four_over_six(weight, amax)
        return block_search.nvfp4(weight, amax, hessian)


def lost(off: torch.Tensor, hessian: torch.Tensor | None) -> float:
    """What a search makes least, where weights are off by so much, FP32 [out, in]."""
    blocks = off.unflatten(1, (-1, BLOCK)).transpose(0, 1)
    products = blocks if hessian is None else blocks @ hessian.to(off.device)
    return float((products * blocks).sum(dtype=torch.float64))


def of_layers(backbone: torch.nn.Module, layers: Iterable[str], state: Mapping[str, torch.Tensor], search: Search) -> Found:
    """The scales of NVFP4 layers of the plain backbone, of which `state` has the maxima; none where these are they."""
    found: Found = {}
    for name in layers if search.seeks else ():
        layer: Any = backbone.get_submodule(name)
        if ragged(layer.weight):
            continue
        found |= search.nvfp4(name, layer.weight.detach(), state[f"{name}.weight_quantizer._amax"].to(layer.weight.device))
    return found


def ragged(weight: torch.Tensor) -> bool:
    """Whether its rows are no whole blocks: then nothing is sought, and the scales stay those of maxima."""
    return bool(weight.shape[-1] % BLOCK)


def of_model(model: torch.nn.Module, search: Search) -> Found:
    """The scales of every weight of a quantized model that has blocks, sought among what is rounded: smoothed, and without a
    low-rank part that is kept beside. None where they are those of maxima."""
    found: Found = {}
    for name, layer in blocks(model) if search.seeks else ():
        quantizer, smoothing = layer.weight_quantizer, layer.input_quantizer.pre_quant_scale
        if quantizer.num_bits == 4 and search.kind == "max":  # which INT4 has of its own
            continue
        seek = search.int4 if quantizer.num_bits == 4 else search.nvfp4
        found |= seek(name, layer.weight.detach(), quantizer.amax, smoothing)
    return found


def blocks(model: torch.nn.Module) -> Iterable[tuple[str, Any]]:
    """By name the layers whose weights are rounded once, in whole blocks of four bits."""
    for name, layer in model.named_modules():
        quantizer = getattr(layer, "weight_quantizer", None)
        if quantizer is None or isinstance(quantizer, SequentialQuantizer) or not quantizer.is_enabled or ragged(layer.weight):
            continue
        if quantizer.num_bits == 4 or quantizer.is_nvfp4_dynamic or quantizer.is_nvfp4_static:
            yield name, layer


@torch.no_grad()
def put(model: torch.nn.Module, found: Mapping[str, torch.Tensor], kind: str) -> None:
    """Give a model that is calibrated on maxima these scales, in place: its NVFP4 weights become modelopt's static blocks. And
    weights that were rounded, which by those scales stay as they are."""
    for name, scales in found.items():
        if name.endswith(ROUNDED):
            continue
        quantizer: Any = model.get_submodule(name.removesuffix(CODES).removesuffix(MAXIMA))
        if name.endswith(MAXIMA):
            quantizer.amax = scales.to(quantizer.amax.device)
        else:
            make_static(quantizer, scales.to(quantizer.amax.device), kind == "four_over_six")
    for name, codes in found.items():
        if name.endswith(ROUNDED):
            layer: Any = model.get_submodule(name.removesuffix(f".weight_quantizer{ROUNDED}"))
            layer.weight.data.copy_(grid.of(layer).numbers(codes.to(layer.weight.device)))


def make_static(quantizer: Any, codes: torch.Tensor, four_over_six: bool) -> None:
    """Give a quantizer of NVFP4, calibrated on maxima, these scales of its blocks, E4M3 [out, in / 16], in place."""
    peak = quantizer.amax.detach().float().reshape(())
    quantizer.block_sizes = quantizer.block_sizes | {"type": "static"} | ({"four_over_six": True} if four_over_six else {})
    quantizer.reset_amax()
    quantizer.amax = static_blocks.maxima(codes, peak, static_blocks.largest(quantizer)).reshape(-1, 1)
    low_rank = isinstance(quantizer, SVDQuantTensorQuantizer)
    StaticBlockScaleQuantizer.from_tensor_quantizer(quantizer, peak)
    if low_rank:
        quantizer.__class__ = StaticBesideLowRank


class StaticBesideLowRank(StaticBlockScaleQuantizer, SVDQuantTensorQuantizer):  # type: ignore[misc]
    """Static blocks of what SVDQuant leaves, which modelopt has no class for: its own file of such a model cannot be read."""


def split(stored: Mapping[str, torch.Tensor]) -> tuple[Found, Found]:
    """What is of maxima, and what a search found."""
    searched = {n: x for n, x in stored.items() if n.endswith((CODES, MAXIMA, ROUNDED))}
    return {n: x for n, x in stored.items() if n not in searched}, searched
