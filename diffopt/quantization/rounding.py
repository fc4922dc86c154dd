"""What modelopt's input quantizers compute, as plain torch that a compiler takes into the kernel of what comes before.

modelopt's own are opaque to torch.compile: CUDA extensions, Triton kernels, and branches on what a tensor holds.
"""

from typing import Any

import torch
from modelopt.torch.quantization.nn import SequentialQuantizer, TensorQuantizer

from diffopt.quantization.block_fake_quant import BLOCK, E4M3_MAX, MX_BLOCK, mxfp8, nvfp4_by, tensor_scale
from diffopt.quantization.tally import Tally

NOTHING = 1 / (1 << 24)
"""An amax up to this is none to modelopt: FP8 then takes 1 for it, and INT8 rounds everything to 0."""


class Rounding(torch.nn.Module):
    """Smooths by channel where it has scales for that, and rounds."""

    smoothing: torch.Tensor | None
    range: torch.Tensor | None = None
    """The amax, of one that has a static scale."""
    tally: Tally | None
    """Counts what is beyond the range, where it is to be counted."""

    def __init__(self, smoothing: torch.Tensor | None):
        super().__init__()
        self.register_buffer("smoothing", smoothing)
        self.register_module("tally", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.smoothed(self.smooth(x))

    def smoothed(self, x: torch.Tensor) -> torch.Tensor:
        """Of what is smoothed already."""
        found = self.rounded(x)
        if self.tally is not None:
            self.tally(x, found)
        return found

    def same(self, other: "Rounding") -> bool:
        """Whether both compute the same."""
        ours, theirs = dict(self.named_buffers()), dict(other.named_buffers())
        return type(self) is type(other) and ours.keys() == theirs.keys() and all(ours[n].equal(theirs[n]) for n in ours)

    def smooth(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.smoothing is None else x * self.smoothing

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape and floating dtype, which it keeps; computes in FP32."""
        return x


class Fp8Rounding(Rounding):
    """E4M3 by one static scale."""

    scale: torch.Tensor
    inverse: torch.Tensor

    def __init__(self, smoothing: torch.Tensor | None, amax: torch.Tensor):
        super().__init__(smoothing)
        scale = E4M3_MAX / torch.where(amax <= NOTHING, 1.0, amax)
        self.register_buffer("scale", scale)
        self.register_buffer("inverse", 1 / scale)
        self.range = amax

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        codes = (x.contiguous().float() * self.scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
        return (codes.float() * self.inverse).to(x.dtype)


class Int8Rounding(Rounding):
    """INT8 by one static scale, ties to even."""

    scale: torch.Tensor
    divisor: torch.Tensor
    least: torch.Tensor

    def __init__(self, smoothing: torch.Tensor | None, amax: torch.Tensor, narrow: bool):
        super().__init__(smoothing)
        scale = torch.full_like(amax, 127) / amax  # 127 / amax would be by the reciprocal
        self.register_buffer("scale", torch.where(amax <= NOTHING, 0.0, scale))
        self.register_buffer("divisor", torch.where(amax <= NOTHING, 1.0, scale))
        self.register_buffer("least", torch.full_like(scale, -127 if narrow else -128))
        self.range = amax

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        codes = (x.contiguous().float() * self.scale).round().clamp(max=127).maximum(self.least)
        return (codes / self.divisor).to(x.dtype)


class Nvfp4Rounding(Rounding):
    """NVFP4: a static scale of the tensor, and the blocks' as it passes."""

    tensor_scale: torch.Tensor

    def __init__(self, smoothing: torch.Tensor | None, amax: torch.Tensor):
        super().__init__(smoothing)
        self.register_buffer("tensor_scale", tensor_scale(amax))
        self.range = amax

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        return nvfp4_by(x.contiguous(), self.tensor_scale)


class Mxfp8Rounding(Rounding):
    """MXFP8, whose scales are all found as a tensor passes."""

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        return mxfp8(x.contiguous())


def rounding(quantizer: TensorQuantizer | SequentialQuantizer) -> Rounding | None:
    """What computes the same; None for a quantizer that leaves its input as it is.

    Raises ValueError for a quantizer of another kind.
    """
    if not isinstance(quantizer, TensorQuantizer):
        raise ValueError("two quantizers round in turn")
    odd: dict[str, Any] = {n: getattr(quantizer, n, None) for n in ("rotate_is_enabled", "backend", "bias", "_unsigned")}
    if wrong := [name for name, value in odd.items() if value]:
        raise ValueError(f"its quantizer has {wrong[0]}")
    smoothing = quantizer.pre_quant_scale
    smoothing = None if smoothing is None else smoothing.detach().clone()
    if not quantizer.is_enabled:
        return None if smoothing is None else Rounding(smoothing)
    blocks, bits = quantizer.block_sizes, quantizer.num_bits
    if quantizer.is_mx_format and bits == (4, 3) and blocks.get(-1) == MX_BLOCK:
        return Mxfp8Rounding(smoothing)
    if quantizer.amax is None:
        raise ValueError("its quantizer has no static scale")
    amax = quantizer.amax.detach().float()
    if blocks and blocks.get("type") == "dynamic" and bits == (2, 1) and blocks.get(-1) == BLOCK:
        return Nvfp4Rounding(smoothing, amax)
    if blocks or amax.numel() != 1:
        raise ValueError(f"its quantizer has {amax.numel()} scales")
    if bits == (4, 3):
        return Fp8Rounding(smoothing, amax.reshape(()))
    if bits == 8:
        return Int8Rounding(smoothing, amax.reshape(()), quantizer.narrow_range)
    raise ValueError(f"its quantizer has bits {bits}")
