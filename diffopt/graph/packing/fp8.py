"""FP8 E4M3 weights, one scale for the tensor; and INT4 blocks that are rounded to FP8 once more."""

from typing import Any

import torch

from diffopt.graph.packing.integer import NOTHING, int4
from diffopt.graph.packing.packed import Packed
from diffopt.graph.tensor import tensor

BOUND = 448.0


def factor(amax: torch.Tensor) -> torch.Tensor:
    """What FP32 values are multiplied by before they are rounded to E4M3, as modelopt computes it."""
    amax = amax.float()
    return BOUND / torch.where(amax <= NOTHING, 1, amax)


def fp8(packed: Packed, weight: torch.Tensor, quantizer: Any, transpose: bool) -> None:
    """[out, in, ...] -> E4M3 -> DequantizeLinear; a matrix is stored as [in, out] for `transpose`."""
    by = factor(quantizer.amax).reshape(())
    values = (weight.float() * by).clamp(-BOUND, BOUND).to(torch.float8_e4m3fn)
    inputs = [
        packed.add(tensor(packed.called("fp8"), values.T if transpose else values)),
        packed.add(tensor(packed.called("scale"), (1 / by).to(weight.dtype))),
    ]
    packed.node("DequantizeLinear", inputs)


def int4_fp8(packed: Packed, weight: torch.Tensor, quantizer: Any, transpose: bool) -> None:
    """Stored in 4 bits as by `int4`; then QuantizeLinear and DequantizeLinear round to FP8, as for an FP8 product."""
    blocks, tensorwise = quantizer
    int4(packed, weight, blocks, transpose)
    scale = packed.add(tensor(packed.called("fp8_scale"), (1 / factor(tensorwise.amax)).reshape(()).to(weight.dtype)))
    zero = packed.add(tensor(packed.called("fp8_zero"), torch.zeros((), device=weight.device).to(torch.float8_e4m3fn)))
    rounded = packed.node("QuantizeLinear", [packed.out, scale, zero])
    packed.node("DequantizeLinear", [rounded, scale, zero])
