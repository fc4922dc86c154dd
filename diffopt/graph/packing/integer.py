"""Integer weights: INT8 with one scale for each output channel or for all, INT4 with one for each block of inputs."""

from typing import Any

import onnx
import torch

from diffopt.graph.packing.packed import Packed
from diffopt.graph.tensor import nibbles, tensor

NOTHING = 2.0**-24
"""modelopt takes a smaller amax for zero."""


def rounded(weight: torch.Tensor, amax: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers (as FP32) and the scales they count in, in the weight's precision; `amax` broadcasts to the weight.

    As modelopt computes them: in FP32, weight * (bound / amax), half to even.
    """
    bound = 2 ** (bits - 1) - 1
    amax = amax.float()
    empty = amax <= NOTHING
    # A tensor divided by a tensor: a number divided by one is its reciprocal times the number, another last bit.
    factor = torch.where(empty, 0, torch.tensor(float(bound), device=amax.device) / amax)
    integers = torch.clamp(torch.round(weight.float() * factor), -bound - 1, bound)
    return integers, torch.where(empty, 1, amax / bound).to(weight.dtype)


def int8(packed: Packed, weight: torch.Tensor, quantizer: Any, transpose: bool) -> None:
    """[out, in, ...] -> INT8 -> DequantizeLinear; a matrix is stored as [in, out] for `transpose`."""
    integers, scale = rounded(weight, quantizer.amax, 8)
    axis = None if scale.numel() == 1 else 0
    if transpose:
        integers, axis = integers.T, None if axis is None else 1
    scale = scale.reshape(()) if axis is None else scale.reshape(-1)
    inputs = [
        packed.add(tensor(packed.called("int8"), integers.to(torch.int8))),
        packed.add(tensor(packed.called("scale"), scale)),
        packed.add(tensor(packed.called("zero"), torch.zeros_like(scale, dtype=torch.int8))),
    ]
    packed.node("DequantizeLinear", inputs, axis=axis)


def int4(packed: Packed, weight: torch.Tensor, quantizer: Any, transpose: bool) -> None:
    """[out, in] -> INT4 in blocks of inputs -> DequantizeLinear.

    Stored as [in, out] and blocked along axis 0: TensorRT takes INT4 blocks of the contracted axis, the first one of
    a right operand. Not transposed, the weight is transposed back.
    """
    rows, columns = weight.shape
    block = quantizer.block_sizes[-1]
    amax = quantizer.amax.reshape(rows, columns // block, 1)
    integers, scale = rounded(weight.reshape(rows, columns // block, block), amax, 4)
    codes = integers.reshape(rows, columns).T.to(torch.int8) & 15
    inputs = [
        packed.add(nibbles(packed.called("int4"), onnx.TensorProto.INT4, codes)),
        packed.add(tensor(packed.called("scale"), scale.reshape(rows, -1).T)),
    ]
    packed.node("DequantizeLinear", inputs, axis=0, block_size=block)
    if not transpose:
        packed.node("Transpose", [packed.out], perm=[1, 0])
