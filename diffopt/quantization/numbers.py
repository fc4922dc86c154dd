"""What codes and scales stand for, in the layout that Model-Optimizer's unified checkpoint has of a linear layer."""

from collections.abc import Mapping

import torch

from diffopt.quantization.block_codes import BIAS
from diffopt.quantization.block_fake_quant import BLOCK, E4M3_MAX, MX_BLOCK, VALUES

FOUR_BITS = 7
"""The largest code of INT4."""


def numbers(tensors: Mapping[str, torch.Tensor], format: str) -> torch.Tensor:
    """FP32 [out, in]: what the weight's codes stand for, as a reader takes them, SmoothQuant's and AWQ's scale still in it."""
    found: torch.Tensor
    if format in ("int4_awq", "w4a8_awq"):
        found, outer = int4(tensors["weight"], tensors["weight_scale"]), tensors.get("weight_scale_2")
        if outer is None:
            return found
        # What W4A8's kernels multiply is FP8.
        found = (found * (1 / outer)).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float() * outer
        return found
    weight, scale = tensors["weight"], tensors["weight_scale"]
    if format.startswith("nvfp4"):
        return (nvfp4(unpacked(weight), scale) * tensors["weight_scale_2"].double()).float()
    if format == "mxfp8":
        return mxfp8(weight, scale).float()
    found = weight.float() * (scale if scale.dim() == 0 else scale[:, None])
    return found


def int4(pairs: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """FP32 [out, in] of UINT8 [out / 2, in], two rows in a byte, the even one in the lower bits; `scale` [out, blocks]."""
    codes = torch.stack([pairs & 15, pairs >> 4], 1).flatten(0, 1).int()
    signed = torch.where(codes > FOUR_BITS, codes - 16, codes).float()
    blocks: torch.Tensor = signed.unflatten(1, (scale.shape[1], -1))
    return (blocks * scale[..., None]).flatten(1)


def nvfp4(codes: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
    """FP64 of E2M1 codes with their blocks' scales, which is exact."""
    signed = torch.cat([VALUES, -VALUES]).double().to(codes.device)
    blocks: torch.Tensor = signed[codes.long()].unflatten(-1, (-1, BLOCK))
    return (blocks * small.double()[..., None]).flatten(-2)


def mxfp8(codes: torch.Tensor, powers: torch.Tensor) -> torch.Tensor:
    """FP64 of E4M3 codes with their blocks' E8M0 scales, UINT8, which is exact."""
    blocks: torch.Tensor = codes.double().unflatten(-1, (-1, MX_BLOCK))
    return torch.ldexp(blocks, powers.int()[..., None] - BIAS).flatten(-2)


def packed(codes: torch.Tensor) -> torch.Tensor:
    """Two in a byte, the first in the lower bits."""
    return codes[..., ::2] | codes[..., 1::2] << 4


def unpacked(pairs: torch.Tensor) -> torch.Tensor:
    return torch.stack([pairs & 15, pairs >> 4], -1).flatten(-2)
