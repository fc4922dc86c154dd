"""Fake quantization in blocks on a CPU, where modelopt has no kernel for it: NVFP4 and MXFP8.

NVFP4 (OCP microscaling's E2M1 values; NVIDIA's two-level scaling): a tensor has one FP32 scale g = amax / (6 * 448), a
block of 16 consecutive values one E4M3 scale s = e4m3(max|block| / (6 g)), and each value the nearest of +-{0, 0.5, 1, 1.5,
2, 3, 4, 6} times s * g, ties to the even mantissa.

MXFP8 (OCP microscaling): a block of 32 has the smallest power of two s with max|block| / s <= 448, and each value the
nearest E4M3 value times s.

Both in the order of operations of modelopt 0.47's kernels (kernels/quantization/gemm: fp4_kernel_hopper.py with
common/nvfp4_quant.py, tensor_quant_mx.cu), since it decides the last bits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from diffopt.machine import extensions

E2M1_MAX, E4M3_MAX = 6.0, 448.0
BLOCK, MX_BLOCK = 16, 32
VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
# The tensor scale is made by torch on the GPU, which divides by a number by multiplying with its FP32 reciprocal.
RECIPROCAL = float(1 / torch.tensor(E2M1_MAX * E4M3_MAX))
# A scale below this the kernel takes for 1, which leaves nothing of so small a block.
SMALLEST = 1e-5


def e2m1(x: torch.Tensor) -> torch.Tensor:
    """The nearest E2M1 value, of any shape; beyond 6 it saturates."""
    size = x.abs()
    # Its values are 0.5 apart up to 2, 1 apart up to 4, and 2 apart up to 6; the doublings are exact.
    nearest = torch.where(size < 2, (size * 2).round() * 0.5, torch.where(size < 4, size.round(), (size * 0.5).round() * 2))
    return torch.sign(x) * nearest.clamp(max=E2M1_MAX)


def e4m3(x: torch.Tensor) -> torch.Tensor:
    """The nearest E4M3 value, saturating at 448."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float()


def nvfp4(x: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    """`x` rounded to NVFP4 and back: any shape, blocks of 16 along the last axis, which is padded with zeros.

    `amax` is the tensor's calibrated absolute maximum (any shape; its largest element counts). Computes in FP32 and
    returns x's dtype.
    """
    return nvfp4_by(x, tensor_scale(amax))


def tensor_scale(amax: torch.Tensor) -> torch.Tensor:
    """FP32 [], of the largest of `amax`."""
    found = amax.float().max() * RECIPROCAL
    return torch.where(found > 0, found, 1e-12)


def nvfp4_by(x: torch.Tensor, tensor_scale: torch.Tensor) -> torch.Tensor:
    """The same by the tensor's scale, FP32 []. Without a branch on what x holds or a table, for compilers."""
    blocks = _blocks(x, BLOCK)
    scale = e4m3(blocks.abs().amax(-1, keepdim=True) / (E2M1_MAX * tensor_scale)) * tensor_scale
    scale = torch.where(scale < SMALLEST, 1, scale)  # NaN stays NaN
    return _joined(e2m1(blocks / scale) * scale, x)


def mxfp8(x: torch.Tensor) -> torch.Tensor:
    """`x` rounded to MXFP8 and back: any shape, blocks of 32 along the last axis, which is padded with zeros.

    Computes in FP32 and returns x's dtype.
    """
    blocks = _blocks(x, MX_BLOCK)
    peak = blocks.abs().amax(-1, keepdim=True)
    mantissa, exponent = torch.frexp(peak / E4M3_MAX)
    exponent = (exponent - (mantissa == 0.5).int()).clamp(-127, 127)  # the ceiling of its binary logarithm
    exponent = torch.where((peak == 0) | ~torch.isfinite(peak), 0, exponent)
    return _joined(e4m3(blocks * _power(-exponent)) * _power(exponent), x)


def _power(exponent: torch.Tensor) -> torch.Tensor:
    """2 to whole exponents of -127 to 127, FP32, exactly: the product of two whose bits are those of a normal number."""
    half = exponent >> 1
    return ((half + 127) << 23).view(torch.float32) * ((exponent - half + 127) << 23).view(torch.float32)


def _blocks(x: torch.Tensor, size: int) -> torch.Tensor:
    """[..., n] -> FP32 [..., blocks, size]."""
    padded: torch.Tensor = torch.nn.functional.pad(x.float(), (0, -x.shape[-1] % size))
    return padded.reshape(*x.shape[:-1], -1, size)


def _joined(blocks: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return blocks.flatten(-2)[..., : like.shape[-1]].to(like.dtype)


@contextmanager
def simulated() -> Iterator[None]:
    """Within it, modelopt's dynamic block quantization of a CPU tensor is computed here; undone afterwards."""
    import modelopt.torch.quantization.tensor_quant as tensor_quant  # not where only the arithmetic is wanted

    if torch.cuda.is_available():
        extensions.free()  # what modelopt computes there it compiles first
    kernel = tensor_quant.dynamic_block_quantize_op

    def dispatch(
        inputs: torch.Tensor,
        block: int,
        amax: torch.Tensor | None,
        bits: int,
        exponent: int,
        scale_bits: int,
        scale_exponent: int,
    ) -> torch.Tensor:
        if inputs.is_cuda:
            found: torch.Tensor = kernel(inputs, block, amax, bits, exponent, scale_bits, scale_exponent)
            return found
        if torch.onnx.is_in_onnx_export():  # the exporter emits the operator; its body is never part of the graph
            return inputs.clone()
        asked = (block, bits, exponent, scale_bits, scale_exponent)
        if asked == (MX_BLOCK, 8, 4, 9, 8):
            return mxfp8(inputs)
        if asked == (BLOCK, 4, 2, 8, 4) and amax is not None:
            return nvfp4(inputs, amax)
        raise ValueError(f"no CPU arithmetic for blocks of {block} with {bits}-bit values and {scale_bits}-bit scales")

    kernels = tensor_quant.triton_kernel
    tensor_quant.dynamic_block_quantize_op = dispatch
    tensor_quant.triton_kernel = _StaticBlocks(kernels)
    try:
        yield
    finally:
        tensor_quant.dynamic_block_quantize_op = kernel
        tensor_quant.triton_kernel = kernels


class _StaticBlocks:
    """modelopt's module of kernels, with that for static blocks on a CPU too."""

    IS_AVAILABLE = True

    def __init__(self, kernels: Any):
        self._kernels = kernels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    def static_blockwise_fp4_fake_quant(self, x: torch.Tensor, *how: Any) -> torch.Tensor:
        from diffopt.quantization.static_blocks import fake_quant

        own = self._kernels.static_blockwise_fp4_fake_quant if x.is_cuda else fake_quant
        found: torch.Tensor = own(x, *how)
        return found

    def static_blockwise_fp4_cast(self, x: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        found: torch.Tensor = self._kernels.static_blockwise_fp4_cast(x, out_dtype) if x.is_cuda else e2m1(x)
        return found.to(out_dtype or x.dtype)
