"""`metrics.json`: every metric on every picture, the candidate's and the reference's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from diffopt.files.interval import Interval
from diffopt.files.json_file import JsonFile


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    title: str
    """The metric's name for people."""
    unit: str
    better: Literal["higher", "lower"]
    candidate: Interval
    values: Sequence[float] | None = None
    """Of every picture; None for a metric that judges whole sets (FID, CMMD)."""
    difference: Interval | None = None
    """Candidate - reference, pair by pair; None for what is a distance from the reference already."""
    verdict: str | None = None
    """What that shows, and what it cannot show."""
    reference: Interval | None = None
    reference_values: Sequence[float] | None = None


@dataclass(frozen=True)
class MetricsFile(JsonFile):
    NAME = "metrics.json"
    SCHEMA = "diffopt.metrics/1"

    prompts: Sequence[str]
    metrics: Mapping[str, MetricResult]
    """By name, in the recipe's order."""
    difference_gain: int
    """By how much the difference pictures are amplified."""
    frames: int | None = None
    """Of videos: how many of each are judged. A value is the mean over them, an interval is over videos."""
