"""A floor under quality, and by how much pictures keep it: judged picture by picture, with the interval."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from diffopt.errors import ConfigError
from diffopt.files.interval import Interval
from diffopt.files.metrics import MetricResult
from diffopt.quality.direction import sign

WRITTEN = re.compile(r"([A-Za-z][\w.-]*)=(?:([+-]\d*\.?\d+)%|([+-]?\d*\.?\d+))")


class Measured(Protocol):
    """A job of a sweep, or a run."""

    @property
    def metrics(self) -> Mapping[str, MetricResult]: ...


@dataclass(frozen=True)
class Floor:
    """What a metric must at least be, or at most where lower is better."""

    metric: str
    limit: float
    """A share of the reference, as -0.005, where it is a change from it; else the metric's own value."""
    change: bool
    text: str

    @classmethod
    def parse(cls, text: str) -> "Floor":
        """`clip=-0.5%` from the reference, or `psnr=40` itself: the forms of a recipe's gates.

        Raises ConfigError for anything else.
        """
        found = WRITTEN.fullmatch(text.replace(" ", ""))
        if not found:
            raise ConfigError(
                f"floor: cannot be read (got {text!r}); write METRIC=-0.5% for the change from the reference that is "
                "borne, or METRIC=40 for the value itself"
            )
        metric, change, value = found.groups()
        limit = float(change) / 100 if change else float(value)
        return cls(metric, limit, bool(change), found.string)

    def margin(self, row: "Measured") -> Interval:
        """By how much the job or run is on the right side, in the metric's unit: mean over the pictures, with its interval.

        Raises ConfigError for a change in a metric whose reference has no values.
        """
        metric = row.metrics[self.metric]
        turn = sign(metric.better)
        if self.change and metric.reference_values is None:
            mean = metric.candidate.mean
            raise ConfigError(
                f"floor: {metric.title} is a distance from the reference already (got {self.text}); "
                f"give its own limit, as {self.metric}={mean:.3g}"
            )
        if metric.values is None:  # of a metric that judges sets of pictures there is the interval alone
            return metric.candidate.mapped(lambda v: turn * (v - self.limit))
        import numpy as np

        from diffopt.metrics.intervals import interval

        values = np.array(metric.values, dtype=float)
        if not self.change:
            return interval(turn * (values - self.limit))
        theirs = np.array(metric.reference_values, dtype=float)
        return interval(turn * (values - theirs - self.limit * np.abs(theirs)))


def floors(given: Mapping[str, float | str] | Sequence[str] | None) -> list[Floor]:
    """Of `[clip=-0.5%, psnr=40]` or `{clip: -0.5%, psnr: 40}`, as a recipe has them. Raises ConfigError for what is none."""
    if isinstance(given, Mapping):
        return [Floor.parse(f"{name}={limit}") for name, limit in given.items()]
    return [Floor.parse(str(text)) for text in given or ()]


def shortfall(measured: Measured, floors: Sequence[Floor]) -> float:
    """By how much the means miss the floors, as shares of the metrics' values, added up; 0 where all are kept.

    Raises ConfigError for a floor under a metric that was not measured.
    """
    found = 0.0
    for floor in floors:
        if floor.metric not in measured.metrics:
            there = ", ".join(measured.metrics) or "no metrics"
            raise ConfigError(f"floor: is not measured (got {floor.text}); there are {there}")
        found += max(0.0, -share(measured, floor, floor.margin(measured)))
    return found


def share(measured: Measured, floor: Floor, margin: Interval) -> float:
    return margin.mean / (abs(measured.metrics[floor.metric].candidate.mean) or 1.0)
