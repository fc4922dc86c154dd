"""Floors under quality: limits that a sweep's jobs, or the values of a cache's knob, must keep."""

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from diffopt.errors import ConfigError, suggestion
from diffopt.files.metrics import MetricResult
from diffopt.quality.limit import LATENCY, PARITY, Limit

NAME = re.compile(r"[A-Za-z][\w.-]*")


class Measured(Protocol):
    """A job of a sweep, or a run."""

    @property
    def metrics(self) -> Mapping[str, MetricResult]: ...


def floors(given: Mapping[str, float | str] | Sequence[str] | None) -> list[Limit]:
    """Of `[clip=-0.5%, psnr=40]` or `{clip: -0.5%, psnr: 40}`, as a recipe has them. Raises ConfigError for what is none."""
    if isinstance(given, Mapping):
        return [_floor(name, amount) for name, amount in given.items()]
    return [parse(str(text)) for text in given or ()]


def parse(text: str) -> Limit:
    """`clip=-0.5%` or `psnr=40`. Raises ConfigError for anything else."""
    name, _, amount = (part.strip() for part in text.partition("="))
    if not NAME.fullmatch(name) or not amount:
        raise ConfigError(
            f"floor: cannot be read (got {text!r}); write METRIC=-0.5% for the change from the reference that is "
            "borne, or METRIC=40 for the value itself"
        )
    return _floor(name, amount)


def _floor(name: str, amount: float | str) -> Limit:
    try:
        found = Limit.parse(name, amount)
        if found.metric in (LATENCY, PARITY):
            raise ValueError(f"is a gate's limit, no floor's; set eval.gates.{name}")
    except ValueError as e:
        what, _, advice = str(e).partition("; ")
        raise ConfigError(f"floor: {what} (got {f'{name}={amount}'!r}); {advice}") from None
    return found


def shortfall(measured: Measured, floors: Sequence[Limit]) -> float:
    """By how much the means miss the floors, as shares of the metrics' values, added up; 0 where all are kept.

    Raises ConfigError for a floor under a metric that was not measured.
    """
    found = 0.0
    for floor in floors:
        if floor.metric not in measured.metrics:
            raise ConfigError(f"floor: is not measured (got {floor.text}); {suggestion(floor.metric, measured.metrics)}")
        found += max(0.0, -share(measured.metrics[floor.metric], floor))
    return found


def share(metric: MetricResult, floor: Limit) -> float:
    """By how much the mean keeps the floor, as a share of the candidate's value."""
    return floor.lead(metric) / (abs(metric.candidate.mean) or 1.0)
