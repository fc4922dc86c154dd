"""A setting in a race: what it costs as far as is known, the scores of what it has drawn, and how it left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

import numpy as np

from diffopt.files.metrics import MetricResult
from diffopt.files.race import Left
from diffopt.metrics.intervals import interval
from diffopt.quality.direction import sign
from diffopt.quality.limit import Limit
from diffopt.sweep.cost import ALIKE


@dataclass(frozen=True)
class Cost:
    """Between two ends, which are one where it is known exactly; less is better."""

    value: float
    """What is shown, and decides the order in which settings enter."""
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> "Cost":
        return cls(value, value, value)

    def below(self, other: "Cost") -> bool:
        """Whether it is surely less."""
        return self.high * (1 + ALIKE) < other.low

    def at_most(self, other: "Cost") -> bool:
        """Whether it is surely no more; two that are the same, or measured at once, are."""
        return (self == other and self.high < inf) or self.high <= other.low * (1 + ALIKE)


@dataclass(frozen=True)
class Scores:
    """Of one setting, prompt by prompt."""

    metrics: Mapping[str, MetricResult]
    floors: Sequence[Limit]
    first: str
    """The metric that tells better from worse where floors do not."""

    @property
    def n(self) -> int:
        return len(self.worth)

    @cached_property
    def worth(self) -> np.ndarray:
        """The first metric, [n], turned so that more is better."""
        found = self.metrics[self.first]
        return sign(found.better) * np.array(found.values, dtype=float)

    @cached_property
    def margins(self) -> list[np.ndarray]:
        """By how much each floor is kept, [n] each."""
        return [f.margins(self.metrics[f.metric]) for f in self.floors]

    @property
    def keeps(self) -> bool:
        """Whether the means keep every floor."""
        return all(m.mean() >= 0 for m in self.margins)

    @cached_property
    def surely(self) -> bool:
        """Whether the 95% intervals of all margins are on the right side, as a sweep's verdict has it."""
        found = [interval(m).ends for m in self.margins]
        return all(ends is not None and ends[0] >= 0 for ends in found)


@dataclass
class Contestant:
    number: int
    """In the sweep, from 0."""
    overrides: tuple[str, ...]
    cost: Cost
    """Of what is wanted."""
    damage: float = 0.0
    """What its format does to its layers' outputs, where that is known: relative error squared, over all layers."""
    scores: Scores | None = None
    shown: bool = False
    """Whether it has been shown to keep every floor."""
    left: Left | None = None

    @property
    def n(self) -> int:
        return self.scores.n if self.scores else 0

    @property
    def drawn(self) -> Scores:
        assert self.scores is not None
        return self.scores

    @property
    def lives(self) -> bool:
        return self.left is None

    @property
    def mean(self) -> float:
        return float(self.drawn.worth.mean())
