"""What a cache saved, counted."""

from dataclasses import dataclass

from diffopt.files.cache_summary import CacheSummary


@dataclass(frozen=True)
class Statistics:
    hits: int
    """Calls of blocks, or of attention layers, that were answered from the cache."""
    misses: int
    """Calls of the same ones that were computed."""
    computed: float
    """Share of the backbones' arithmetic that was done, in multiplications and additions of products: 1 is all of it."""

    def summary(self) -> CacheSummary:
        return CacheSummary(self.hits, self.misses, round(self.computed, 6))
