"""The numbers that a weight of four bits can be, by scales of its blocks that are given: NVFP4's, and INT4's."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from diffopt.quantization import block_codes
from diffopt.quantization.block_fake_quant import BLOCK, VALUES
from diffopt.quantization.block_search import e2m1_
from diffopt.quantization.numbers import packed, unpacked

MOST, LEAST, NOTHING = 7.0, -8.0, 2.0**-24
"""Of INT4: its largest number and its smallest, and the maximum of a block that modelopt takes for zero."""

Numbers = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Grid:
    """Of a weight [out, in]: every number is a unit, one of sixteen, times the factor of its block; of INT4 divided by it, as
    modelopt has it."""

    factor: torch.Tensor
    """FP32 [out, in / size]; a block that has 0 is all zeros."""
    size: int
    """Inputs of a block."""
    divides: bool
    unit: Numbers
    """The nearest to a number, of any shape; may be computed in its place."""
    code: Numbers
    """UINT8 0..15, of a unit."""
    decoded: Numbers

    @cached_property
    def divisor(self) -> torch.Tensor:
        return torch.where(self.factor == 0, 1, self.factor)

    def column(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """The nearest of its numbers to x, FP32 [out], which is the weight's column of this index."""
        block = index // self.size
        factor, divisor = self.factor[:, block], self.divisor[:, block]
        return self._scaled(self._units(x, factor, divisor), factor, divisor)

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """UINT8 [out, in / 2] of the nearest of its numbers: two in a byte, the first in the lower bits."""
        blocks = weight.float().unflatten(1, (-1, self.size))
        return packed(self.code(self._units(blocks, self.factor[..., None], self.divisor[..., None])).flatten(1))

    def numbers(self, codes: torch.Tensor) -> torch.Tensor:
        """FP32 [out, in] that such codes stand for."""
        units = self.decoded(unpacked(codes)).unflatten(1, (-1, self.size))
        return self._scaled(units, self.factor[..., None], self.divisor[..., None]).flatten(1)

    def _units(self, x: torch.Tensor, factor: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
        return self.unit(x * factor if self.divides else x / divisor)

    def _scaled(self, units: torch.Tensor, factor: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
        return units / divisor if self.divides else units * factor


def of(layer: Any) -> Grid:
    """Of a linear layer whose weight's quantizer has blocks of four bits, NVFP4's with scales that are given."""
    quantizer, out = layer.weight_quantizer, len(layer.weight)
    if quantizer.num_bits == 4:
        amax = quantizer.amax.detach().float().reshape(out, -1).to(layer.weight.device)
        # A tensor divided by a tensor: a number divided by one is its reciprocal times the number, another last bit.
        inverse = torch.where(amax <= NOTHING, 0, torch.full_like(amax, MOST) / amax)
        size = layer.weight.shape[1] // amax.shape[1]
        return Grid(inverse, size, True, lambda x: x.round_().clamp_(LEAST, MOST), _of_int4, lambda code: code.float() + LEAST)
    small, scale = block_codes.given(layer.weight, quantizer)
    return Grid(small.float() * scale, BLOCK, False, e2m1_, block_codes.e2m1, _of_e2m1)


def _of_int4(units: torch.Tensor) -> torch.Tensor:
    return (units - LEAST).to(torch.uint8)


def _of_e2m1(code: torch.Tensor) -> torch.Tensor:
    return torch.cat([VALUES, -VALUES]).to(code.device)[code.long()]
