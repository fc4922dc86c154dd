"""Weights in blocks of inputs that share a small scale: NVFP4 and MXFP8."""

from typing import Any

import onnx
import torch

from diffopt.block_arithmetic import E2M1_MAX, E4M3_MAX, VALUES, e2m1, e4m3
from diffopt.graph.packing.packed import DOMAIN, Packed
from diffopt.graph.tensor import KINDS, nibbles, tensor

BIAS = 127
"""Of E8M0 exponents."""


def nvfp4(packed: Packed, weight: torch.Tensor, quantizer: Any, transpose: bool) -> None:
    """[out, in] -> E2M1, E4M3 block scales and an FP32 scale -> two DequantizeLinear, cast to the weight's precision.

    Blocks lie along the last axis, where TensorRT wants them, so the weight is stored as it is and transposed after.
    """
    rows, columns = weight.shape
    size = quantizer.block_sizes[-1]
    blocks = weight.float().reshape(rows, columns // size, size)
    tensor_scale = quantizer.amax.float().max() / (E2M1_MAX * E4M3_MAX)
    if tensor_scale == 0:
        tensor_scale = torch.ones_like(tensor_scale)
    small = e4m3(blocks.abs().amax(-1) / E2M1_MAX / tensor_scale)
    scale = (small * tensor_scale)[..., None]
    values = torch.where(scale == 0, 0, e2m1(blocks / torch.where(scale == 0, 1, scale)))
    codes = torch.bucketize(values.abs(), VALUES.to(values.device)) | (torch.signbit(values).int() << 3)
    inner = packed.node(
        "DequantizeLinear",
        [
            packed.add(tensor(packed.called("block_scale"), small.to(torch.float8_e4m3fn))),
            packed.add(tensor(packed.called("scale"), tensor_scale)),
        ],
    )
    stored = packed.add(nibbles(packed.called("fp4"), onnx.TensorProto.FLOAT4E2M1, codes.reshape(rows, columns)))
    packed.node("DequantizeLinear", [stored, inner], axis=-1, block_size=size)
    if transpose:
        packed.node("Transpose", [packed.out], perm=[1, 0])
    if weight.dtype != torch.float32:
        packed.node("Cast", [packed.out], to=KINDS[weight.dtype])


def mxfp8(packed: Packed, weight: torch.Tensor, quantizer: Any, transpose: bool) -> None:
    """[out, in] -> E4M3 and one E8M0 exponent a block -> TensorRT's MXFP8 dequantizer -> transposed."""
    rows, columns = weight.shape
    size = quantizer.block_sizes[-1]
    blocks = weight.float().reshape(rows, columns // size, size)
    exponents = exponent(blocks.abs().amax(-1))
    values = (blocks * torch.exp2(-exponents)[..., None]).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    scales = tensor(packed.called("scale"), (exponents + BIAS).to(torch.uint8))
    inputs = [packed.add(tensor(packed.called("fp8"), values.reshape(rows, columns))), packed.add(scales)]
    attributes = {"axis": -1, "block_size": size, "output_dtype": KINDS[weight.dtype]}
    packed.node("TRT_MXFP8DequantizeLinear", inputs, domain=DOMAIN, **attributes)
    if transpose:
        packed.node("Transpose", [packed.out], perm=[1, 0])


def exponent(amax: torch.Tensor) -> torch.Tensor:
    """The power of two by which a block is divided: the smallest with which its maximum fits E4M3; any shape, FP32."""
    return torch.ceil(torch.log2((amax / E4M3_MAX).clamp_min(2.0**-126)))
