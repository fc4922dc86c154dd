"""How often a backbone was called, and how much of its arithmetic was left out."""

from collections.abc import Iterable, Mapping
from typing import Any

from diffopt.caches import flops
from diffopt.caches.statistics import Statistics


class Meter:
    """Of one backbone. Blocks of all calls are weighed as in the first one."""

    def __init__(self, backbone: Any):
        self.backbone = backbone
        self.calls = 0
        self._shapes: flops.Call | None = None
        self._work: dict[str, int] | None = None

    def see(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call with these arguments."""
        self.calls += 1
        if self._shapes is None:
            self._shapes = flops.shapes(args, kwargs)

    def computed(self, hits: Mapping[str, int]) -> float:
        """Share of the arithmetic of all calls that was done, given how often each module was left out."""
        hits = {name: count for name, count in hits.items() if count}
        if self._shapes is None or not hits:
            return 1.0
        if self._work is None:
            self._work = flops.work(self.backbone, self._shapes)
        return 1 - sum(count * self._work[name] for name, count in hits.items()) / (self.calls * self._work[""])


def statistics(sides: Iterable[tuple[Meter, Mapping[str, int], Mapping[str, int]]]) -> Statistics:
    """Of all backbones, each with its modules' hits and misses. The backbones of a pipeline are of one size."""
    sides = list(sides)
    calls = sum(meter.calls for meter, _, _ in sides)
    return Statistics(
        hits=sum(sum(hits.values()) for _, hits, _ in sides),
        misses=sum(sum(misses.values()) for _, _, misses in sides),
        computed=sum(meter.calls * meter.computed(hits) for meter, hits, _ in sides) / calls if calls else 1.0,
    )
