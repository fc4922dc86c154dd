"""Scales of weights' blocks that are trained beside the weights: modelopt's LSQ (Learned Step Size Quantization, arXiv
1902.08153), on from what a calibration or a search found.

What is trained of a block is where it ends, its amax, and not its scale: that is as large as the weights are, so that an
optimizer that goes by steps of its own size, as Adam does, moves both by the same share. What comes out is an ordinary
checkpoint: the scales as they are stored, and the weights.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from modelopt.torch.quantization.nn import StaticBlockScaleQuantizer

from diffopt.quantization import block_codes, static_blocks
from diffopt.quantization.block_fake_quant import E4M3_MAX
from diffopt.quantization.weight_scales import CODES, MAXIMA, Found, blocks, make_static

LEARNED: dict[str, dict[str, Any]] = {
    "learned": {"learnable_amax": ["post"]},
    "tied": {"learnable_amax": ["pre", "post"], "tied_amax": True},
    "dual": {"learnable_amax": ["pre", "post"]},
}
"""modelopt's arguments by `train.scales`."""
LEAST, LEAST_INT = 2.0**-9, 1e-8
"""modelopt's LSQ takes no scale for smaller: E4M3's than this share of the tensor's largest, an integer's than this."""
PARAMETERS = (".weight_quantizer._amax_pre", ".weight_quantizer._amax_post")
"""End the names of what is trained."""

Whole = Callable[[torch.Tensor], torch.Tensor]


class Scales:
    """Those of the quantized layers of `model` whose weights have blocks: parameters of its quantizers from then on."""

    def __init__(self, model: torch.nn.Module, kind: str):
        self.layers: dict[str, Any] = dict(blocks(model))
        self._tied = LEARNED[kind].get("tied_amax", False)
        for layer in self.layers.values():
            _learn(layer, LEARNED[kind])

    @torch.no_grad()
    def found(self, whole: Whole, dtypes: Mapping[str, torch.dtype]) -> Found:
        """What weight_scales.py keeps of them, on the CPU. `whole` gives all of a tensor of which this process has a part;
        `dtypes` are those that weights are stored in."""
        found: Found = {}
        for name, layer in self.layers.items():
            quantizer = layer.weight_quantizer
            amax, stem = whole(quantizer.amax_post).float(), f"{name}.weight_quantizer"
            if quantizer.is_nvfp4_static:
                peak = quantizer.global_amax.float().max()
                codes = static_blocks.codes(amax.clamp(min=LEAST * peak), peak)
                found[stem + CODES] = codes.reshape(len(layer.weight), -1).cpu()
            else:
                amax = amax.clamp(min=LEAST_INT * quantizer._quant_max_bound)
                found[stem + MAXIMA] = amax.to(dtypes[f"{name}.weight"]).cpu().contiguous()
        return found

    @torch.no_grad()
    def rounded(self, name: str, weight: torch.Tensor, whole: Whole, found: Found) -> torch.Tensor:
        """Of the parameter `name` what is kept beside the scales that were `found`: where a block is divided by one scale and
        multiplied by another, the weights that come of it, which its one stored scale rounds to themselves."""
        layer = self.layers.get(name.removesuffix(".weight"))
        if self._tied or layer is None or not name.endswith(".weight"):
            return weight
        quantizer = layer.weight_quantizer
        before = quantizer._block_scale_from_amax(whole(quantizer.amax_pre), quantizer._quantize_scales)
        values = quantizer._cast_ste(weight.float().reshape(len(before), -1) / before.reshape(-1, 1))
        stem = f"{name.removesuffix('.weight')}.weight_quantizer"
        if quantizer.is_nvfp4_static:
            after = found[stem + CODES].to(weight.device).float() * static_blocks.tensor_scale(quantizer.global_amax)
        else:
            after = found[stem + MAXIMA].to(weight.device).float() / quantizer._quant_max_bound
        again: torch.Tensor = (values * after.reshape(-1, 1)).reshape(weight.shape)
        return again


def is_scale(name: str) -> bool:
    return name.endswith(PARAMETERS)


def _learn(layer: Any, how: dict[str, Any]) -> None:
    quantizer = layer.weight_quantizer
    if isinstance(quantizer.num_bits, int):
        StaticBlockScaleQuantizer.from_tensor_quantizer(quantizer)
    else:
        if not isinstance(quantizer, StaticBlockScaleQuantizer):  # its scales are found of the blocks' maxima as it rounds
            make_static(quantizer, block_codes.nvfp4_by_maxima(layer.weight.detach(), quantizer.amax)[1], False)
        # modelopt's LSQ has the tensor's maximum at 448 always: under four over six that of 448 is another.
        quantizer.global_amax = quantizer.global_amax * (E4M3_MAX / static_blocks.largest(quantizer))
    # Of the weights' precision, as modelopt's `lsq` has it: FSDP2 gathers no two of them together.
    quantizer.enable_lsq(**how, dtype=layer.weight.dtype)
