"""The codes and block scales of NVFP4 and MXFP8, of which `block_fake_quant` computes the numbers: on any device."""

from typing import Any

import torch

from diffopt.quantization import static_blocks
from diffopt.quantization.block_fake_quant import BLOCK, E2M1_MAX, E4M3_MAX, MX_BLOCK, RECIPROCAL, SMALLEST

Coded = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""E2M1 codes UINT8 [out, in], E4M3 block scales [out, in / 16] and the tensor's scale FP32 [] of a weight in NVFP4."""
BIAS = 127
"""Of E8M0 exponents."""


def tensor_scale(amax: torch.Tensor) -> torch.Tensor:
    """FP32 []: NVFP4's scale of a tensor with this calibrated maximum, of any shape."""
    found = amax.detach().float().max() * RECIPROCAL
    return torch.where(found > 0, found, 1e-12)


def nvfp4_weight(weight: torch.Tensor, quantizer: Any) -> Coded:
    """As its quantizer rounds it: by the blocks' own maxima, or by scales that were searched. Kernels, graphs and packages of
    NVFP4 are all made of these."""
    if quantizer.block_sizes.get("type") == "dynamic":
        return nvfp4_by_maxima(weight, quantizer.amax)
    small, scale = given(weight, quantizer)
    whole = (small.float() * scale)[..., None]
    blocks = weight.float().unflatten(-1, (-1, BLOCK))
    return e2m1(torch.where(whole == 0, 0, blocks / torch.where(whole == 0, 1, whole))).flatten(-2), small, scale


def given(weight: torch.Tensor, quantizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """E4M3 block scales [out, in / 16] and the tensor's scale FP32 [] of a weight whose scales were searched."""
    peak, most = quantizer.global_amax.detach().to(weight.device), static_blocks.largest(quantizer)
    small = static_blocks.codes(quantizer.amax.detach().to(weight.device), peak, most).reshape(*weight.shape[:-1], -1)
    return small, static_blocks.tensor_scale(peak, most)


def nvfp4_by_maxima(weight: torch.Tensor, amax: torch.Tensor) -> Coded:
    """By the maxima of its blocks, beside that of the tensor."""
    scale = tensor_scale(amax).to(weight.device)
    return *nvfp4(weight, scale), scale


def nvfp4(x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E2M1 codes, UINT8 0..15 of x's shape, and the E4M3 scales of its blocks [..., n / 16], beside the tensor's `scale`."""
    blocks = x.float().unflatten(-1, (-1, BLOCK))
    small = (blocks.abs().amax(-1, keepdim=True) / (E2M1_MAX * scale)).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)
    whole = small.float() * scale
    values = torch.where(whole < SMALLEST, 0, blocks / torch.where(whole < SMALLEST, 1, whole))
    return e2m1(values).flatten(-2), small.squeeze(-1)


def e2m1(x: torch.Tensor) -> torch.Tensor:
    """Bits of the nearest E2M1 values, ties to the even mantissa, saturating at 6: UINT8 0..15 of x's shape.

    The values are 0.5 apart up to 2, 1 apart up to 4, then 2 apart.
    """
    size = x.abs().clamp(max=E2M1_MAX)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    size = torch.round(size / step) * step
    code = torch.where(size < 2, 2 * size, torch.where(size < 4, size + 2, size / 2 + 4))
    return code.to(torch.uint8) | (torch.signbit(x).to(torch.uint8) << 3)


def mxfp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E4M3 codes of x's shape, and the E8M0 scales of its blocks as UINT8 [..., n / 32]."""
    blocks = x.float().unflatten(-1, (-1, MX_BLOCK))
    powers = exponents(blocks.abs().amax(-1, keepdim=True))
    codes = torch.ldexp(blocks, -powers).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return codes.flatten(-2), (powers.squeeze(-1) + BIAS).to(torch.uint8)


def exponents(peaks: torch.Tensor) -> torch.Tensor:
    """Of the smallest powers of two by which blocks with these maxima are divided to fit E4M3; INT32, any shape."""
    mantissa, exponent = torch.frexp(peaks / E4M3_MAX)
    exponent = (exponent - (mantissa == 0.5).int()).clamp(-BIAS, BIAS)
    return torch.where((peaks == 0) | ~torch.isfinite(peaks), 0, exponent)
