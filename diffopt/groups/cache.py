"""`cache=`: reuse of block outputs between denoising steps."""

from typing import Literal

from pydantic import Field

from diffopt.view import Group, View


class Cache(Group):
    method: Literal["first_block"]
    """`first_block`: diffusers' FirstBlockCache."""
    threshold: float = Field(gt=0, lt=10)
    """Relative change of the first block's residual below which the other blocks are not computed."""


class CacheView(View, of=Cache):
    method: Literal["first_block"]
    threshold: float
