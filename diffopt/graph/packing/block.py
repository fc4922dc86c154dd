"""Weights in blocks of inputs that share a small scale: NVFP4 and MXFP8, rounded as in `block_fake_quant`."""

from typing import Any

import onnx
import torch

from diffopt.graph.packing.packed import DOMAIN, Packed
from diffopt.graph.tensor import KINDS, nibbles, tensor
from diffopt.quantization.block_fake_quant import E2M1_MAX, E4M3_MAX

BIAS = 127
"""Of E8M0 exponents."""
SMALLEST = 1e-5
"""modelopt's kernel leaves nothing of a block whose scale is less."""


def nvfp4(packed: Packed, weight: torch.Tensor, quantizer: Any, transpose: bool) -> None:
    """[out, in] -> E2M1, E4M3 block scales and an FP32 scale -> two DequantizeLinear, cast to the weight's precision.

    Blocks lie along the last axis, where TensorRT wants them, so the weight is stored as it is and transposed after.
    """
    blocks = _blocks(weight, size := quantizer.block_sizes[-1])
    whole = quantizer.amax.float().max() * (1 / torch.tensor(E2M1_MAX * E4M3_MAX)).to(weight.device)
    whole = torch.where(whole > 0, whole, 1e-12)
    small = (blocks.abs().amax(-1, keepdim=True) / (E2M1_MAX * whole)).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)
    scale = small.float() * whole
    values = torch.where(scale < SMALLEST, 0, blocks / torch.where(scale < SMALLEST, 1, scale))
    inner = packed.node(
        "DequantizeLinear",
        [
            packed.add(tensor(packed.called("block_scale"), small.squeeze(-1))),
            packed.add(tensor(packed.called("scale"), whole)),
        ],
    )
    codes = e2m1_codes(values).reshape(weight.shape)
    stored = packed.add(nibbles(packed.called("fp4"), onnx.TensorProto.FLOAT4E2M1, codes))
    packed.node("DequantizeLinear", [stored, inner], axis=-1, block_size=size)
    if transpose:
        packed.node("Transpose", [packed.out], perm=[1, 0])
    if weight.dtype != torch.float32:
        packed.node("Cast", [packed.out], to=KINDS[weight.dtype])


def e2m1_codes(x: torch.Tensor) -> torch.Tensor:
    """Bits of the nearest E2M1 values, ties to the even mantissa, saturating at 6: UINT8 0..15 of x's shape, any device.

    The values are 0.5 apart up to 2, 1 apart up to 4, then 2 apart.
    """
    size = x.abs().clamp(max=E2M1_MAX)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    size = torch.round(size / step) * step
    code = torch.where(size < 2, 2 * size, torch.where(size < 4, size + 2, size / 2 + 4))
    return code.to(torch.uint8) | (torch.signbit(x).to(torch.uint8) << 3)


def mxfp8(packed: Packed, weight: torch.Tensor, quantizer: Any, transpose: bool) -> None:
    """[out, in] -> E4M3 and one E8M0 exponent a block -> TensorRT's MXFP8 dequantizer -> transposed."""
    blocks = _blocks(weight, size := quantizer.block_sizes[-1])
    powers = exponents(blocks.abs().amax(-1, keepdim=True))
    values = torch.ldexp(blocks, -powers).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    inputs = [
        packed.add(tensor(packed.called("fp8"), values.reshape(weight.shape))),
        packed.add(tensor(packed.called("scale"), (powers.squeeze(-1) + BIAS).to(torch.uint8))),
    ]
    attributes = {"axis": -1, "block_size": size, "output_dtype": KINDS[weight.dtype]}
    packed.node("TRT_MXFP8DequantizeLinear", inputs, domain=DOMAIN, **attributes)
    if transpose:
        packed.node("Transpose", [packed.out], perm=[1, 0])


def exponents(peaks: torch.Tensor) -> torch.Tensor:
    """Of the smallest powers of two by which blocks with these maxima are divided to fit E4M3; INT32, any shape."""
    mantissa, exponent = torch.frexp(peaks / E4M3_MAX)
    exponent = (exponent - (mantissa == 0.5).int()).clamp(-BIAS, BIAS)
    return torch.where(peaks == 0, 0, exponent)


def _blocks(weight: torch.Tensor, size: int) -> torch.Tensor:
    """[out, in] -> FP32 [out, in / size, size]."""
    return weight.float().reshape(weight.shape[0], -1, size)
