"""What a cache saved, as several files have it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheSummary:
    hits: int
    """Calls of blocks, or of attention layers, that were answered from the cache."""
    misses: int
    """Calls of the same ones that were computed."""
    computed: float
    """Share of the backbones' arithmetic that was done."""
