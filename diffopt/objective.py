"""What a search seeks: the number that a job gives Hydra's sweepers, made worst where the job breaks a floor."""

import re
from collections.abc import Sequence
from typing import Any

from diffopt.errors import ConfigError, GateError
from diffopt.run import Run
from diffopt.view import Choices

COSTS = ("bytes", "seconds")
"""Objectives where less is better: of the graph or plan, and the candidate's median per picture. Others are metrics."""

BROKEN = 1e15
"""Added to a cost, or taken from a metric, below a floor: more than any of them. Optuna's sweeper hands no constraints to its
samplers, and its best trial is the best value's: so a trial that breaks the floor must have a worse one than any that keeps it.
The shortfall comes on top, so that a search without a single good trial is led towards the floor."""

WRITTEN = re.compile(r"([A-Za-z_]\w*)=([+-]?)(\d+\.?\d*|\.\d+)(%?)")


def names(objective: Any) -> list[str]:
    """Of one or several; none where the first metric is meant."""
    return [] if objective is None else [objective] if isinstance(objective, str) else [str(o) for o in objective]


def directions(objective: Any) -> str | list[str]:
    """For Optuna: `minimize` or `maximize`, one for each of several. The metrics (PSNR, SSIM, CLIP) are all to be high."""
    found = ["minimize" if name in COSTS else "maximize" for name in names(objective)]
    return found if len(found) > 1 else (found or ["maximize"])[0]


def check(objective: Any, choices: Choices) -> None:
    """Raises ConfigError for an objective that the job will not have measured."""
    if not (objective is None or isinstance(objective, str) or (isinstance(objective, list) and objective)):
        raise ConfigError(
            f"objective: is neither a name nor a list of names (got {objective!r}); give bytes, seconds or a metric"
        )
    measured = list(choices.eval.metrics) if choices.eval else []
    for name in names(objective):
        if name == "bytes" and choices.export is None:
            raise ConfigError("objective: nothing is exported, so nothing has a size (got bytes); choose export=onnx")
        if name == "seconds" and not (choices.eval and choices.eval.latency):
            raise ConfigError("objective: nothing is timed (got seconds); set eval.latency=true")
        if name not in COSTS and name not in measured:
            there = ", ".join([*COSTS, *measured])
            raise ConfigError(f"objective: is not measured (got {name!r}); there are {there}, or add it to eval.metrics")


def of(run: Run, objective: Any, floors: Sequence[str] = ()) -> float | list[float] | None:
    """The objective's value, or a list of several; None for a job without metrics where the first metric is meant.

    Raises GateError for one that the run has not measured, and ConfigError for a floor that cannot be judged.
    """
    wanted = names(objective) or list(run.metrics)[:1]
    found = [_value(run, name) for name in wanted]
    if (short := sum(shortfall(run, floor) for floor in floors)) > 0:
        found = [(BROKEN if name in COSTS else -BROKEN) * (1 + short) for name in wanted]
    return found if len(found) > 1 else found[0] if found else None


def _value(run: Run, name: str) -> float:
    value: float | None = None
    if name == "bytes":
        form = run.size_of("export") or run.size_of("build")
        value = form["bytes"] if form else None
    elif name == "seconds":
        timed = run.latency and run.latency.get("candidate")
        value = timed["seconds_per_image"]["median"] if timed else None
    elif name in run.metrics:
        value = run.metrics[name]["candidate"]["mean"]
    if value is None:
        raise GateError(f"objective: was not measured in this run (got {name}); choose another, or drop what leaves it out")
    return float(value)


def shortfall(run: Run, floor: str) -> float:
    """By how much the mean misses a floor, as a share of it; 0 where it is kept.

    `psnr=40` is the value itself, `clip=-0.4` a difference from the reference's, `clip=-0.5%` one in percent of it.
    """
    found = WRITTEN.fullmatch(floor.replace(" ", ""))
    if not found:
        raise ConfigError(f"floor: cannot be read (got {floor!r}); write METRIC=-0.5%, METRIC=-0.4 or METRIC=40")
    name, sign, digits, percent = found.groups()
    if name not in run.metrics:
        raise ConfigError(f"floor: is not measured (got {floor!r}); there are {', '.join(run.metrics) or 'no metrics'}")
    metric, bound = run.metrics[name], float(sign + digits)
    if sign or percent:
        if not metric.get("reference"):
            raise ConfigError(
                f"floor: {name} of the reference has no value of its own (got {floor!r}); give the value: {name}=40"
            )
        reference = float(metric["reference"]["mean"])
        share = bound / 100 if sign else bound / 100 - 1
        bound = reference + (share * abs(reference) if percent else bound)
    return max(0.0, bound - float(metric["candidate"]["mean"])) / (abs(bound) or 1.0)
