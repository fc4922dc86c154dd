"""A mean with its uncertainty, as several files have it."""

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float | None
    """Of the 95% interval; None for fewer than two values, which show no spread."""
    high: float | None
    n: int
    """Values, of which it is the mean: pictures, or calls that were timed."""

    @property
    def ends(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)

    def mapped(self, of: Callable[[float], float]) -> "Interval":
        """In other units; a falling function turns the ends."""
        if self.ends is None:
            return replace(self, mean=of(self.mean))
        low, high = sorted(map(of, self.ends))
        return Interval(of(self.mean), low, high, self.n)
