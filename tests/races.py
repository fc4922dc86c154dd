"""Races over scores that are known beforehand: no picture is drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffopt.files.interval import Interval
from diffopt.files.metrics import MetricResult
from diffopt.groups.ship import Ship
from diffopt.race.contestant import Contestant, Cost
from diffopt.race.course import Course

ROUNDS = [8, 16, 32, 64]


def ship(**given: Any) -> Ship:
    return Ship.model_validate({"want": "bytes", "floor": {"psnr": 30}, "rounds": ROUNDS, **given})


def metric(values: Sequence[float] | np.ndarray, reference: np.ndarray | None = None) -> MetricResult:
    """Of the first prompts, as metrics.json has it."""

    def around(of: np.ndarray) -> Interval:
        return Interval(float(of.mean()), None, None, len(of))

    ours = np.asarray(values, dtype=float)
    beside = {"reference": around(reference), "reference_values": reference.tolist()} if reference is not None else {}
    return MetricResult(
        title="PSNR",
        unit="dB",
        better="higher",
        candidate=around(ours),
        values=ours.tolist(),
        **beside,  # type: ignore[arg-type]
    )


def course(asked: Ship, costs: Sequence[float], scores: Sequence[Mapping[str, np.ndarray]]) -> tuple[Course, int]:
    """A race that is run over `scores`, by setting and metric [prompts]; and the pictures that it drew."""
    field = [Contestant(i, (f"setting={i}",), Cost.exact(c)) for i, c in enumerate(costs)]
    made = Course(asked, field, next(iter(scores[0])))

    def draw(due: list[tuple[Contestant, int]]) -> dict[int, dict[str, MetricResult]]:
        return {c.number: {name: metric(v[:many]) for name, v in scores[c.number].items()} for c, many in due}

    made.run(draw)
    return made, sum(c.n for c in field)
