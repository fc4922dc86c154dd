"""`comparison.json`: the candidate against each further one of `eval.compare`, picture by picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from diffopt.files.interval import Interval
from diffopt.files.json_file import JsonFile


@dataclass(frozen=True)
class ComparedMetric:
    title: str
    unit: str
    better: Literal["higher", "lower"]
    candidate: Interval
    compared: Interval
    difference: Interval | None = None
    """Candidate - compared, pair by pair; None for a metric that judges whole sets (FID, CMMD)."""
    verdict: str | None = None
    """What that shows."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One further candidate."""

    name: str
    title: str
    """What it is, for people."""
    steps: int | None = None
    """Of `fewer_steps`."""
    arithmetic: float | None = None
    """Of `fewer_steps`, the share of the arithmetic of all steps."""
    computed: float | None = None
    """The candidate's own share, where it has a cache."""
    metrics: Mapping[str, ComparedMetric]


@dataclass(frozen=True)
class ComparisonFile(JsonFile):
    NAME = "comparison.json"
    SCHEMA = "diffopt.comparison/1"

    compared: tuple[Compared, ...]
    """In the order of `eval.compare`."""
