"""`evaluation.json`: what `diffopt eval` has measured of any models' pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from diffopt.files.interval import Interval
from diffopt.files.json_file import JsonFile


@dataclass(frozen=True)
class ModelResult:
    """One model in one metric."""

    stat: Interval
    values: Sequence[float | None] | None = None
    """Of every prompt, None where it was left out; not of a metric that judges whole sets."""
    difference: Interval | None = None
    """From the reference, pair by pair."""
    verdict: str | None = None


@dataclass(frozen=True)
class EvaluatedMetric:
    title: str
    unit: str
    better: Literal["higher", "lower"]
    weights: Mapping[str, str]
    """Digests of what scored."""
    models: Mapping[str, ModelResult]
    order: Sequence[str]
    """Of a metric that judges pairs, a line for each two neighbours in the order of their means."""


@dataclass(frozen=True)
class EvaluationFile(JsonFile):
    NAME = "evaluation.json"
    SCHEMA = "diffopt.evaluation/1"

    reference: str | None
    models: Sequence[str]
    prompts: Sequence[str]
    left_out: Sequence[int]
    """Prompts of which a picture could not be read, by their place."""
    problems: Sequence[str]
    metrics: Mapping[str, EvaluatedMetric]
