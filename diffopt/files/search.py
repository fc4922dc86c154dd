"""`search.json`: the value of a cache's knob that leaves out most and keeps a floor under quality, and all that were tried."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from diffopt.files.interval import Interval
from diffopt.files.json_file import JsonFile
from diffopt.files.metrics import MetricResult


@dataclass(frozen=True)
class TriedValue:
    value: float
    metrics: Mapping[str, MetricResult]
    """Of the floor: the cached pictures beside the reference's; empty where they are broken."""
    broken: str | None
    """Why there are no metrics."""
    hits: int
    misses: int
    computed: float
    """Share of the backbones' arithmetic that was done."""
    margins: Mapping[str, Interval]
    """By metric of the floor by how much it is kept; below 0 it is not."""
    keeps: bool
    """Whether the means keep every floor."""
    shown: bool
    """Whether the sample shows that they do."""
    order: int
    """The how-manieth it was, from 1."""


@dataclass(frozen=True)
class Cliff:
    """What is not smooth between two values side by side, as diffopt/tuning/bisection.py finds it."""

    after: float
    before: float
    kind: Literal["jumps", "slows", "falls", "rises"]
    metric: str | None
    """Of what falls or rises."""
    by: float
    """Of a metric in its unit, else a share of the arithmetic."""


@dataclass(frozen=True)
class CacheSearchFile(JsonFile):
    NAME = "search.json"
    SCHEMA = "diffopt.cache-search/1"

    method: str
    knob: str
    """The cache's field."""
    more: Literal["higher", "lower"]
    """Which values of it leave out more."""
    low: float
    high: float
    """Between which it was looked for."""
    floor: Mapping[str, float | str]
    """By metric what is to be kept."""
    prompts: int
    """That were drawn for each value."""
    steps: int
    """Denoising steps of each."""
    points: tuple[TriedValue, ...]
    """In the order in which they leave out more."""
    cliffs: tuple[Cliff, ...]
    chosen: TriedValue
    limit: Literal["floor", "bound", "evaluations"]
    """What keeps a faster one from being chosen."""
    reason: str
    """The same in words."""
