"""A limit on a metric, which is one thing wherever it stands: a gate of a run, a floor of a sweep or of a cache's search.

    psnr: 20        the candidate's own mean: at least this, at most where lower is better
    clip: -0.5%     its change from the reference's mean, as a share of that mean's size
    latency: 1.0x   the least speedup; of gates alone
    parity: 0.05    the largest relative error of a denoising step at most; of gates alone

A change has a sign. `-0.5%` lets the mean fall by so much, `+1%` asks that it rises; where lower is better `+2%` lets it rise.
The share is of the size of the reference's mean over all pictures, and so is the same for each of them, also of a metric whose
values have both signs: of an ImageReward of 0.4, -10% is 0.04, whatever single pictures have. Of a mean of 0 every share is 0.
"""

import re
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Literal

from diffopt.errors import ConfigError
from diffopt.files.interval import Interval
from diffopt.files.metrics import MetricResult
from diffopt.metrics import METRICS
from diffopt.quality.direction import sign

if TYPE_CHECKING:
    import numpy as np

LATENCY = "latency"
PARITY = "parity"
Kind = Literal["value", "change", "speedup"]
KINDS: dict[str, Kind] = {"": "value", "%": "change", "x": "speedup"}
FORM = re.compile(r"(?P<number>(?P<sign>[+-]?)(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)(?P<unit>%|x|)")


@dataclass(frozen=True)
class Limit:
    metric: str
    amount: float
    """In the metric's unit, as a share of the reference's mean, or as a ratio of times."""
    kind: Kind
    written: str
    """The amount as it was given, without spaces."""

    @classmethod
    def parse(cls, metric: str, given: float | str) -> "Limit":
        """Raises ValueError, `what is wrong; what to do`, for what is no limit of this metric."""
        written = "".join(given.split()) if isinstance(given, str) else repr(float(given)).removesuffix(".0")
        found = FORM.fullmatch(written)
        kind = KINDS[found["unit"]] if found and isfinite(float(found["number"])) else None
        if found is None or kind is None or (metric == LATENCY) != (kind == "speedup"):
            forms = "the least speedup, such as 1.0x" if metric == LATENCY else "a mean such as 20, or a change such as -0.5%"
            raise ValueError(f"is not a limit; write {forms}")
        if metric == PARITY and kind != "value":
            raise ValueError("is not a limit; write the largest relative error of a step, such as 0.05")
        if kind == "change" and metric in METRICS and METRICS[metric].judges != "picture":
            raise ValueError("is a distance from the reference already; give its own limit, without %")
        if kind == "change" and not found["sign"]:
            raise ValueError(f"is a change without a sign; write -{written} or +{written}")
        return cls(metric, float(found["number"]) / (100 if kind == "change" else 1), kind, written)

    def __str__(self) -> str:
        return f"{self.metric}: {self.written}"

    @property
    def text(self) -> str:
        """As on a command line."""
        return f"{self.metric}={self.written}"

    def bound(self, metric: MetricResult) -> float:
        """What the candidate's mean must reach, in the metric's unit.

        Raises ConfigError for a change in a metric whose reference has no values.
        """
        if self.kind != "change":
            return self.amount
        if metric.reference is None:
            raise ConfigError(
                f"floor: {metric.title} is a distance from the reference already (got {self.text}); "
                f"give its own limit, as {self.metric}={metric.candidate.mean:.3g}"
            )
        return metric.reference.mean + self._allowed(metric.reference)

    def lead(self, metric: MetricResult) -> float:
        """By how much the mean is on the right side, in the metric's unit."""
        return sign(metric.better) * (metric.candidate.mean - self.bound(metric))

    def keeps(self, metric: MetricResult) -> bool:
        """Whether the mean does."""
        return self.lead(metric) >= 0

    def margin(self, metric: MetricResult) -> Interval:
        """By how much the pictures are on the right side, with the interval: of a change that of the paired differences."""
        bound, turn = self.bound(metric), sign(metric.better)
        if metric.values is None:  # of a metric that judges sets of pictures there is the interval alone
            return metric.candidate.mapped(lambda v: turn * (v - bound))
        from diffopt.metrics.intervals import interval

        return interval(self.margins(metric))

    def margins(self, metric: MetricResult) -> "np.ndarray":
        """The same of each picture, [n]; of a metric that judges pictures or pairs."""
        import numpy as np

        turn, values = sign(metric.better), np.array(metric.values, dtype=float)
        bound: float | np.ndarray = self.amount
        if self.kind == "change" and metric.reference is not None:
            bound = np.array(metric.reference_values, dtype=float) + self._allowed(metric.reference)
        margins: np.ndarray = turn * (values - bound)
        return margins

    def of_reference(self, metric: MetricResult) -> "np.ndarray | None":
        """The margins of full precision itself, [n]; None of a metric that is a distance from it."""
        import numpy as np

        if metric.reference is None:
            return None
        values = np.array(metric.reference_values, dtype=float)
        bound = metric.reference.mean + self._allowed(metric.reference) if self.kind == "change" else self.amount
        margins: np.ndarray = sign(metric.better) * (values - bound)
        return margins

    def _allowed(self, reference: Interval) -> float:
        return self.amount * abs(reference.mean)
