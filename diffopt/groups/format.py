"""`format=`: the number format that the backbone is quantized to."""

from typing import Literal

from pydantic import Field

from diffopt.view import Group


class Format(Group):
    name: Literal["int8_sq", "fp8", "nvfp4"]
    """Name of a file in diffopt/formats."""
    exclude: list[str] = Field(default=[])
    """Globs over module names (`transformer_blocks.0.*`) kept in full precision, besides the family's own."""
    quantize_mha: bool = False
    """Quantize the query, key and value of attention to FP8 too."""
