"""NVFP4 weights whose block scales are given, not found of each block's maximum: modelopt's static blocks, on any device.

A block has the E4M3 scale that its maximum over 6 is rounded to beside the tensor's, and each value the nearest of +-{0, 0.5,
1, 1.5, 2, 3, 4, 6} times both. In the order of operations of modelopt 0.47's `compute_fp4_scales` and its kernel
`static_blockwise_fp4_fake_quant`: their scale is code times tensor's scale, to the bit.
"""

from typing import Any

import torch

from diffopt.quantization.block_fake_quant import BLOCK, E2M1_MAX, E4M3_MAX, e2m1

FOUR_OVER_SIX_MAX = 256.0
"""The code of a tensor's largest block under four over six, which leaves room for one that ends at 4 and not at 6."""
NOTHING = 1 / (1 << 24)


def largest(quantizer: Any) -> float:
    """The E4M3 code that the tensor's maximum stands for, of a static quantizer of modelopt's."""
    return FOUR_OVER_SIX_MAX if quantizer.block_sizes.get("four_over_six") else E4M3_MAX


def tensor_scale(global_amax: torch.Tensor, most: float = E4M3_MAX) -> torch.Tensor:
    """FP32 []: what codes are multiplied by, of a tensor with this maximum."""
    return 1 / _inverse(global_amax, most)


def codes(amax: torch.Tensor, global_amax: torch.Tensor, most: float = E4M3_MAX) -> torch.Tensor:
    """E4M3, of amax's shape: the scales of blocks that are to end at these maxima."""
    scaled = amax.float() / E2M1_MAX * _inverse(global_amax, most)
    return scaled.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def maxima(codes: torch.Tensor, global_amax: torch.Tensor, most: float = E4M3_MAX) -> torch.Tensor:
    """FP32, of the codes' shape: where blocks of these scales end, as modelopt keeps them. `codes` gives the same back."""
    return global_amax.float() * (codes.float() / most)


def rounded(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`x` [..., n] rounded by its blocks' whole scales FP32 [..., n / 16]; computes in FP32 and returns x's dtype."""
    blocks, whole = x.float().unflatten(-1, (-1, BLOCK)), scale[..., None]
    found: torch.Tensor = torch.where(whole == 0, 0, e2m1(blocks / torch.where(whole == 0, 1, whole)) * whole)
    return found.flatten(-2).to(x.dtype)


def fake_quant(
    x: torch.Tensor,
    amax: torch.Tensor,
    global_amax: torch.Tensor | None = None,
    quantize_block_scales: bool = True,
    fp8_max_for_normalization: float = E4M3_MAX,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """modelopt's function of this name, with its arguments: x [..., 16 k], amax of k blocks in any shape."""
    if not quantize_block_scales:
        raise ValueError("no CPU arithmetic for blocks with scales that are not rounded")
    peak = amax.float().max() if global_amax is None else global_amax
    scale = codes(amax, peak, fp8_max_for_normalization).float() * tensor_scale(peak, fp8_max_for_normalization)
    return rounded(x.reshape(-1, BLOCK), scale.reshape(-1, 1)).reshape(x.shape).to(out_dtype or x.dtype)


def _inverse(global_amax: torch.Tensor, most: float) -> torch.Tensor:
    peak = global_amax.detach().float().max() * (E4M3_MAX / most) / E2M1_MAX
    return E4M3_MAX / torch.where(peak <= NOTHING, 1.0, peak)
