"""Packing weights: what modelopt's weight quantizers simulate, as stored tensors and dequantizing nodes."""

from collections.abc import Callable
from typing import Any

import torch
from modelopt.torch.quantization.nn import SequentialQuantizer

from diffopt.errors import GateError
from diffopt.formats.method import kind
from diffopt.graph.packing.block import mxfp8, nvfp4
from diffopt.graph.packing.fp8 import fp8, int4_fp8
from diffopt.graph.packing.integer import int4, int8
from diffopt.graph.packing.packed import Packed

Packer = Callable[[Packed, torch.Tensor, Any, bool], None]


def pack(name: str, weight: torch.Tensor, quantizer: Any, transpose: bool) -> Packed:
    """The weight called `name`, [out, in] or [out, in, kh, kw], as its quantizer rounds it.

    With `transpose` the value that stands for it is [in, out], as a right operand of MatMul. Raises GateError for a
    kind of quantizer that no graph can hold.
    """
    packed = Packed(name)
    packer = _packer(name, quantizer)
    if weight.dim() != 2 and packer not in (int8, fp8):
        raise GateError(
            f"export: {name}: only matrices are stored in blocks (got a weight of {weight.dim()} axes); "
            "leave convolutions to int8 or fp8"
        )
    packer(packed, weight.detach(), quantizer, transpose)
    return packed


def _packer(name: str, quantizer: Any) -> Packer:
    if isinstance(quantizer, SequentialQuantizer):
        kinds = [_kind(q) for q in quantizer]
        found = int4_fp8 if kinds == ["int4 static", "e4m3"] else None
    else:
        kinds = [_kind(quantizer)]
        found = {
            "int8": int8,
            "int4 static": int4,
            "e4m3": fp8,
            "e2m1 dynamic e4m3": nvfp4,
            "e2m1 static e4m3": nvfp4,
            "e4m3 dynamic e8m0": mxfp8,
        }.get(kinds[0])
    if found is None:
        raise GateError(f"export: {name}: no graph holds such a weight (got {', '.join(kinds)}); choose another format")
    return found


def _kind(quantizer: Any) -> str:
    return kind(quantizer.num_bits, quantizer.block_sizes)
