"""Searches for the scales of a weight's blocks: that of each block with the least error, of the weights or of what they make.

By the local Hessian the error of a block is d' H d, d being how far its weights are off and H the mean of x x' over its 16
inputs x: what the block alone adds to the squared error of the layer's output. With no Hessian it is d' d.

The candidates, and which of equal ones is taken, are modelopt 0.47's: `NVFP4MSECalibrator` for NVFP4, every E4M3 scale there
is; its four over six, a block that ends at 6 or at 4; and `MseCalibrator` for INT4, 39 multiples of the block's maximum.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch

from diffopt.quantization.block_fake_quant import BLOCK, E2M1_MAX, E4M3_MAX
from diffopt.quantization.static_blocks import FOUR_OVER_SIX_MAX, codes, tensor_scale

CODES = 126
"""E4M3 numbers that are positive and finite."""
INT4_LEAST, INT4_MOST, INT4_STEP = 0.25, 4.0, 0.1
INT4_MAX, TINY = 7.0, 2.0**-24
EXPONENT = 0x7F800000
AT_ONCE = 2**17
"""Weights that are tried together on a CPU, which its cache holds."""

Candidate = tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]
"""What a block [...] is given, and how its weights [..., size] are then rounded, into a tensor of their own."""


@torch.no_grad()
def nvfp4(weight: torch.Tensor, global_amax: torch.Tensor, hessian: torch.Tensor | None) -> torch.Tensor:
    """E4M3 scales [out, in / 16] of the least error, of a weight [out, in] with this maximum.

    `hessian` is FP32 [in / 16, 16, 16].
    """
    if weight.is_cuda:
        return _by_kernel(weight, global_amax, hessian)
    scales = torch.arange(1, CODES + 1, dtype=torch.uint8, device=weight.device).view(torch.float8_e4m3fn)
    whole = scales.float() * tensor_scale(global_amax)

    def candidates(blocks: torch.Tensor) -> Iterator[Candidate]:
        for index in range(CODES):
            found = torch.full(blocks.shape[:-1], index + 1, dtype=torch.uint8, device=blocks.device)
            yield found, partial(_to_e2m1, divisor=whole[index], scale=whole[index])

    return _least(weight, BLOCK, candidates, hessian).view(torch.float8_e4m3fn)


@torch.no_grad()
def four_over_six(weight: torch.Tensor, global_amax: torch.Tensor) -> torch.Tensor:
    """E4M3 scales [out, in / 16]: each block ends at 6, or, where its weights are nearer then, at 4."""
    scale = tensor_scale(global_amax, FOUR_OVER_SIX_MAX)

    def candidates(blocks: torch.Tensor) -> Iterator[Candidate]:
        peak = blocks.abs().amax(-1)
        for factor in (1.0, 1.5):
            code = codes(peak * factor, global_amax, FOUR_OVER_SIX_MAX)
            whole = (code.float() * scale)[..., None]
            yield code.view(torch.uint8), partial(_to_e2m1, divisor=torch.where(whole == 0, 1, whole), scale=whole)

    return _least(weight, BLOCK, candidates, None).view(torch.float8_e4m3fn)


@torch.no_grad()
def int4(weight: torch.Tensor, amax: torch.Tensor, hessian: torch.Tensor | None) -> torch.Tensor:
    """Maxima of amax's shape and type of the least error, of a weight [out, in] whose blocks have the maxima `amax`.

    `hessian` is FP32 [in / 16, 16, 16]: a block has the sum of the errors of its parts of 16.
    """
    size = weight.numel() // amax.numel()
    factors = torch.linspace(INT4_LEAST, INT4_MOST, math.ceil((INT4_MOST - INT4_LEAST) / INT4_STEP) + 1)
    own = amax.reshape(len(weight), -1)

    def candidates(blocks: torch.Tensor) -> Iterator[Candidate]:
        peak = blocks.abs().amax(-1).to(amax.dtype)
        for factor in factors.to(weight.device):
            found = peak * factor
            inverse = torch.full_like(found, INT4_MAX, dtype=torch.float32) / found.float()
            empty = found.float() <= TINY
            scale, divisor = (torch.where(empty, x, inverse)[..., None] for x in (0.0, 1.0))
            yield found, partial(_to_int4, scale=scale, divisor=divisor)

    return _least(weight, size, candidates, hessian).to(own.dtype).reshape(amax.shape)


def _least(
    weight: torch.Tensor,
    size: int,
    candidates: Callable[[torch.Tensor], Iterable[Candidate]],
    hessian: torch.Tensor | None,
) -> torch.Tensor:
    """By block [out, in / size] what the first candidate of the least error gives it."""
    rows = max(1, AT_ONCE // weight.shape[1])
    hessian = None if hessian is None else hessian.to(weight.device)
    return torch.cat([_of_rows(part, size, candidates, hessian) for part in weight.detach().split(rows)])


def _of_rows(
    weight: torch.Tensor,
    size: int,
    candidates: Callable[[torch.Tensor], Iterable[Candidate]],
    hessian: torch.Tensor | None,
) -> torch.Tensor:
    blocks = weight.float().unflatten(1, (-1, size)).transpose(0, 1).contiguous()
    best: torch.Tensor | None = None
    for found, rounded in candidates(blocks):
        error = _error(rounded(blocks).sub_(blocks), hessian)
        if best is None:
            best, least = found, error
        else:
            better = error < least
            best, least = torch.where(better, found, best), torch.where(better, error, least)
    assert best is not None
    return best.transpose(0, 1)


def _error(off: torch.Tensor, hessian: torch.Tensor | None) -> torch.Tensor:
    """[blocks, rows] of [blocks, rows, size]."""
    if hessian is None:
        return off.square_().sum(-1)
    parts = off.unflatten(-1, (-1, BLOCK)).transpose(1, 2).reshape(len(hessian), -1, BLOCK)
    error: torch.Tensor = (parts @ hessian).mul_(parts).sum(-1).unflatten(0, (len(off), -1))
    return error.sum(1)


def _to_e2m1(x: torch.Tensor, divisor: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return e2m1_(x / divisor).mul_(scale)


def _to_int4(x: torch.Tensor, scale: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
    return (x * scale).round_().clamp_(-INT4_MAX - 1, INT4_MAX).div_(divisor)


def e2m1_(x: torch.Tensor) -> torch.Tensor:
    """`block_fake_quant.e2m1` in place, in a third of the passes.

    A number that is added to one and a half times the number of which its last bit is the step there, and that taken away
    again, is rounded to the step, ties to even: 0.5 up to 2, then 1, from 4 on 2.
    """
    x.clamp_(-E2M1_MAX, E2M1_MAX)
    shift: torch.Tensor = (x.view(torch.int32) & EXPONENT).view(torch.float32).clamp_(min=1).mul_(1.5 * 2**22)
    x.add_(shift).sub_(shift)
    return x


def _by_kernel(weight: torch.Tensor, global_amax: torch.Tensor, hessian: torch.Tensor | None) -> torch.Tensor:
    """The same by modelopt's kernels, which try all scales in one launch."""
    from modelopt.torch.kernels.quantization.gemm import nvfp4_fp8_scale_sweep, nvfp4_fp8_scale_sweep_hessian

    blocks, peak = weight.reshape(-1, BLOCK), global_amax.float().reshape(())
    amax: torch.Tensor
    if hessian is None:
        amax = nvfp4_fp8_scale_sweep(blocks, peak, BLOCK)
    else:
        amax = nvfp4_fp8_scale_sweep_hessian(blocks, peak, hessian.to(weight.device), BLOCK)
    return (amax / peak * E4M3_MAX).to(torch.float8_e4m3fn).reshape(len(weight), -1)
