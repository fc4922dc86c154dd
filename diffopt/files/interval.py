"""A mean with its uncertainty, as several files have it. Whether there is an interval is decided here alone."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self


@dataclass(frozen=True)
class Interval:
    """Of pictures, or of what pairs of them differ by."""

    FEW: ClassVar[int] = 10
    """Values below which there is no interval: a bootstrap of so few covers too little, and of two it is just the two."""

    mean: float
    low: float | None
    """Of the 95% interval; None for fewer than FEW values. What is shown is `ends`: files of older versions have these."""
    high: float | None
    n: int
    """Values, of which it is the mean."""
    values: tuple[float, ...] | None = None
    """They themselves, where they are fewer than FEW; not of a whole set's distance, which has one alone."""

    @property
    def ends(self) -> tuple[float, float] | None:
        return None if self.n < self.FEW or self.low is None or self.high is None else (self.low, self.high)

    def mapped(self, of: Callable[[float], float]) -> Self:
        """In other units; a falling function turns the ends."""
        low, high = sorted(map(of, self.ends)) if self.ends else (None, None)
        values = None if self.values is None else tuple(map(of, self.values))
        return replace(self, mean=of(self.mean), low=low, high=high, values=values)


@dataclass(frozen=True)
class CallInterval(Interval):
    """Of ratios of calls that were timed in turn: one machine does the same each time, so fewer tell."""

    FEW: ClassVar[int] = 3
