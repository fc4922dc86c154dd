"""What a cache saved, counted."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Statistics:
    hits: int
    """Calls of blocks, or of attention layers, that were answered from the cache."""
    misses: int
    """Calls of the same ones that were computed."""
    computed: float
    """Share of the backbones' arithmetic that was done, in multiplications and additions of products: 1 is all of it."""

    def summary(self) -> dict[str, Any]:
        return asdict(self) | {"computed": round(self.computed, 6)}
