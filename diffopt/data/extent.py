"""How large pictures and videos are. Imports no library that decodes them."""

from dataclasses import dataclass
from typing import Literal

Small = Literal["refuse", "enlarge"]
"""What becomes of a picture with fewer pixels than are asked for."""


@dataclass(frozen=True)
class Extent:
    """In pixels and frames; `frames` is None for pictures."""

    height: int
    width: int
    frames: int | None = None
