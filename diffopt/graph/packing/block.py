"""Weights in blocks of inputs that share a small scale: NVFP4 and MXFP8, rounded as in `block_fake_quant`."""

from typing import Any

import onnx
import torch

from diffopt.graph.packing.packed import DOMAIN, Packed
from diffopt.graph.tensor import KINDS, nibbles, tensor
from diffopt.quantization import block_codes


def nvfp4(packed: Packed, weight: torch.Tensor, quantizer: Any, transpose: bool) -> None:
    """[out, in] -> E2M1, E4M3 block scales and an FP32 scale -> two DequantizeLinear, cast to the weight's precision.

    Blocks lie along the last axis, where TensorRT wants them, so the weight is stored as it is and transposed after.
    """
    codes, small, whole = block_codes.nvfp4_weight(weight, quantizer)
    inner = packed.node(
        "DequantizeLinear",
        [
            packed.add(tensor(packed.called("block_scale"), small)),
            packed.add(tensor(packed.called("scale"), whole)),
        ],
    )
    stored = packed.add(nibbles(packed.called("fp4"), onnx.TensorProto.FLOAT4E2M1, codes))
    packed.node("DequantizeLinear", [stored, inner], axis=-1, block_size=quantizer.block_sizes[-1])
    if transpose:
        packed.node("Transpose", [packed.out], perm=[1, 0])
    if weight.dtype != torch.float32:
        packed.node("Cast", [packed.out], to=KINDS[weight.dtype])


def mxfp8(packed: Packed, weight: torch.Tensor, quantizer: Any, transpose: bool) -> None:
    """[out, in] -> E4M3 and one E8M0 exponent a block -> TensorRT's MXFP8 dequantizer -> transposed."""
    codes, powers = block_codes.mxfp8(weight)
    inputs = [
        packed.add(tensor(packed.called("fp8"), codes)),
        packed.add(tensor(packed.called("scale"), powers)),
    ]
    attributes = {"axis": -1, "block_size": quantizer.block_sizes[-1], "output_dtype": KINDS[weight.dtype]}
    packed.node("TRT_MXFP8DequantizeLinear", inputs, domain=DOMAIN, **attributes)
    if transpose:
        packed.node("Transpose", [packed.out], perm=[1, 0])
