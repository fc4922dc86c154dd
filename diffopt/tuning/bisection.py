"""Search of a cache's knob for the value that leaves out most under a floor: plain values, plain Python.

A few values from end to end are tried first. Then the gap between the fastest value that keeps the floor and the next one that
does not is halved until they are neighbours. What lies between two neighbours cannot be had by turning this knob.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

from diffopt.caches.knob import Knob
from diffopt.caches.knob_search import KnobSearch
from diffopt.files.interval import Interval
from diffopt.files.metrics import MetricResult
from diffopt.files.search import Cliff
from diffopt.quality.direction import sign

FIGURES = 4
"""Of a value that is no whole number: what is tried can be typed."""
Limit = Literal["floor", "bound", "evaluations"]


@dataclass(frozen=True)
class Scale:
    """The values of a knob in the order in which they leave out more and more."""

    knob: Knob
    low: float
    high: float
    tolerance: float

    def first(self, many: int) -> list[float]:
        """So many values, evenly from end to end; those that fall together once."""
        found = [self._at(i / (many - 1)) for i in range(many)]
        return list(dict.fromkeys(found if self.knob.more == "higher" else found[::-1]))

    def between(self, a: float, b: float) -> float | None:
        """The value half way; None for neighbours."""
        if self.knob.whole:
            middle = (int(a) + int(b)) // 2
            return float(middle) if middle not in (a, b) else None
        low, high = sorted((a, b))
        if high <= low * (1 + self.tolerance) if low > 0 else high - low <= self.tolerance * (self.high - self.low):
            return None
        found = _rounded(math.sqrt(low * high) if low > 0 else (low + high) / 2)
        return found if low < found < high else None

    def sorted(self, values: Iterable[float]) -> list[float]:
        return sorted(values, reverse=self.knob.more == "lower")

    def _at(self, share: float) -> float:
        """Whole numbers evenly by difference, others by ratio: a threshold is a relative change."""
        if self.knob.whole:
            return float(round(self.low + share * (self.high - self.low)))
        if share in (0, 1):
            return self.high if share else self.low
        if self.low > 0:
            return _rounded(self.low * (self.high / self.low) ** share)
        return _rounded(self.low + share * (self.high - self.low))


def _rounded(value: float) -> float:
    return float(f"{value:.{FIGURES}g}")


@dataclass(frozen=True)
class Point:
    """One value that was tried."""

    value: float
    computed: float
    """Share of the backbones' arithmetic that was done."""
    hits: int
    keeps: bool
    """Whether the means keep the floor."""
    metrics: Mapping[str, MetricResult]
    """Empty where the pictures are broken."""
    margins: Mapping[str, Interval]
    """By metric of the floor by how much it is kept; below 0 it is not."""

    @property
    def works(self) -> bool:
        """Whether it can be chosen: it keeps the floor, and leaves something out."""
        return self.keeps and self.hits > 0


@dataclass(frozen=True)
class Found:
    points: list[Point]
    """In the order in which they leave out more and more, as the knob promises."""
    chosen: Point | None
    limit: Limit
    """What keeps a faster one from being chosen: the floor, the knob's end, or that no more values were to be tried."""
    next: Point | None
    """The first point beyond the chosen one that does not keep the floor."""


def search(scale: Scale, evaluate: Callable[[float], Point], many: int, most: int) -> Found:
    """`many` values first, `most` in all. `evaluate` is asked once for each."""
    points = {value: evaluate(value) for value in scale.first(many)}
    while len(points) < most and (gap := _gap(scale, points)) is not None:
        points[gap] = evaluate(gap)
    ordered = [points[v] for v in scale.sorted(points)]
    chosen = fastest(ordered)
    beyond = ordered[ordered.index(chosen) + 1 :] if chosen else []
    broken = next((p for p in beyond if not p.keeps), None)
    limit: Limit = "evaluations" if _gap(scale, points) is not None else "floor" if broken else "bound"
    return Found(ordered, chosen, limit, broken)


def fastest(points: Iterable[Point]) -> Point | None:
    """That which leaves out most of those that keep the floor; of equals the first, whose knob is turned least."""
    return min((p for p in points if p.works), key=lambda p: p.computed, default=None)


def _gap(scale: Scale, points: Mapping[float, Point]) -> float | None:
    """The value to try next: half way between one that keeps the floor and the next one, which does not, where what lies
    between may leave out more than the best so far."""
    ordered = [points[v] for v in scale.sorted(points)]
    best = fastest(ordered)
    found = []
    for a, b in pairwise(ordered):
        if a.keeps and not b.keeps and (best is None or b.computed < best.computed):
            middle = scale.between(a.value, b.value)
            found += [(a.computed, middle)] if middle is not None else []
    return min(found)[1] if found else None


def cliffs(scale: Scale, search: KnobSearch, points: list[Point]) -> Iterator[Cliff]:
    """What is not smooth between points side by side.

    `falls`: a metric of the floor gets worse by more than the limit; `jumps`: so does the share of the arithmetic;
    `rises`: a metric gets better though less is computed, beyond what chance among the pictures explains; `slows`: more is
    computed, though the knob is turned on. Falls and jumps are told of neighbours alone: over a gap they are what the
    knob is for.
    """
    for a, b in pairwise(points):
        between = partial(Cliff, a.value, b.value)
        near = scale.between(a.value, b.value) is None
        less = a.computed - b.computed
        if near and less > search.jump:
            yield between("jumps", None, less)
        if less < 0:
            yield between("slows", None, -less)
        for name in search.floor if a.metrics and b.metrics else ():
            worse, shown = _worse(a, b, name)
            limit = search.fall(name)
            if near and limit is not None and worse > limit:
                yield between("falls", name, worse)
            if shown and less > 0:
                yield between("rises", name, -worse)


def _worse(a: Point, b: Point, name: str) -> tuple[float, bool]:
    """By how much `b` is worse than `a` in a metric, and whether it is shown to be better, picture by picture."""
    ours, theirs = a.metrics[name], b.metrics[name]
    turn = sign(ours.better)
    worse = turn * (ours.candidate.mean - theirs.candidate.mean)
    if worse >= 0:
        return worse, False
    import numpy as np

    from diffopt.metrics.intervals import interval

    better = interval(turn * (np.array(theirs.values) - np.array(ours.values)))
    return worse, better.ends is not None and better.ends[0] > 0
