"""`format=`: the number format that the backbone is quantized to."""

from typing import ClassVar, Literal, Self

from pydantic import Field

from diffopt import formats
from diffopt.view import Choices, Group, View

Name = Literal["int8", "int8_sq", "fp8", "int4_awq", "w4a8_awq", "nvfp4", "nvfp4_svdquant", "mxfp8"]


class Format(Group):
    readers: ClassVar[dict[str, str]] = {
        "block_size": "a format whose blocks can be chosen (int4_awq, w4a8_awq)",
        "rank": "SVDQuant",
        "quantize_mha": "a format of floating-point inputs (fp8, nvfp4, nvfp4_svdquant)",
    }

    name: Name
    """Name of a file in diffopt/formats."""
    exclude: list[str] = Field(default=[])
    """Globs over module names (`transformer_blocks.0.*`) kept in full precision, besides the family's own."""
    quantize_mha: bool = False
    """Quantize the query, key and value of attention to FP8 too."""
    block_size: int | None = Field(default=None, ge=16)
    """Weights that share a scale, along a layer's input features; null takes the format's default."""
    rank: int | None = Field(default=None, ge=1)
    """Rank of the part of each weight that SVDQuant keeps beside it; null takes the format's default."""


class FormatView(View, of=Format):
    """How the backbone is quantized; defaults are filled in, so that one left out and one spelled out are the same."""

    name: Name
    exclude: list[str]
    quantize_mha: bool
    block_size: int | None = None
    rank: int | None = None

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        if choices.format is None:
            return cls.drawn_from()
        method = formats.method(choices.format.name)
        reads = {"quantize_mha": method.attention, "block_size": method.block_size, "rank": method.rank}
        return cls.drawn_from() - {name for name, read in reads.items() if not read}

    @classmethod
    def draw(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Format)
        method = formats.method(group.name)
        return [
            cls(
                name=group.name,
                exclude=group.exclude,
                quantize_mha=group.quantize_mha,
                block_size=method.block_size and (group.block_size or method.block_size),
                rank=method.rank and (group.rank or method.rank),
            )
        ]
