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


def share(hits: dict[str, int], calls: int, work: dict[str, int]) -> float:
    """Of the arithmetic of so many backbone calls what is left without `hits`. `work` is that of each unit in one call, and
    of the whole under an empty name."""
    if not calls or not work:
        return 1.0
    return 1 - sum(count * work[name] for name, count in hits.items()) / (calls * work[""])
