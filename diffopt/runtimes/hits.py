"""A cache that never hit is a run that succeeded only in name."""

from diffopt.caches import METHODS
from diffopt.caches.statistics import Statistics
from diffopt.errors import GateError
from diffopt.groups.cache import CacheView


def check_hits(cache: CacheView, found: Statistics) -> None:
    """Raises GateError where calls were computed and none was answered from the cache."""
    if found.misses and not found.hits:
        name, advice = METHODS[cache.method].knob
        raise GateError(
            f"cache: never hit (got cache.{name}={getattr(cache.settings, name)}, {found.misses} calls computed); "
            f"{advice}, or drop the cache"
        )
