"""What a search seeks: the number that a job gives Hydra's sweepers, made worst where the job breaks a floor."""

from collections.abc import Sequence
from typing import Any

from diffopt.errors import ConfigError, GateError, suggestion
from diffopt.metrics import METRICS
from diffopt.quality.floor import shortfall
from diffopt.quality.limit import Limit
from diffopt.report.run_directory import Run
from diffopt.view import Choices

COSTS = ("bytes", "seconds")
"""Objectives that are no metrics: of the graph, plan or packed weights, and the candidate's median per picture. Less is
better."""

BROKEN = 1e15
"""What a job below a floor is worth, with the sign that is worse: beyond any cost or metric. Optuna's sweeper hands no
constraints to its samplers, and its best trial is that of the best value: so one that breaks the floor must have a worse one
than any that keeps it. The shortfall comes in, so that a search without a single good trial is led towards the floor."""


def names(objective: Any) -> list[str]:
    """Of one or several; none where the first metric is meant."""
    return [] if objective is None else [objective] if isinstance(objective, str) else [str(o) for o in objective]


def minimized(name: str) -> bool:
    """Whether less of it is better. Raises ConfigError for no objective."""
    if name in COSTS:
        return True
    if name not in METRICS:
        raise ConfigError(f"objective: no such thing is measured (got {name!r}); {suggestion(name, [*COSTS, *METRICS])}")
    return METRICS[name].better == "lower"


def directions(objective: Any) -> str | list[str]:
    """For Optuna: `minimize` or `maximize`, one for each of several. A recipe's first metric is taken for one to be high."""
    found = ["minimize" if minimized(name) else "maximize" for name in names(objective)]
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
            there = suggestion(name, [*COSTS, *measured])
            add = ", or add it to eval.metrics" if name in METRICS else ""
            raise ConfigError(f"objective: is not measured (got {name!r}); {there}{add}")


def of(run: Run, objective: Any, floors: Sequence[Limit] = ()) -> float | list[float] | None:
    """The objective's value, or a list of several; None for a job without metrics where the first metric is meant.

    Raises GateError for one that the run has not measured, and ConfigError for a floor that cannot be judged.
    """
    wanted = names(objective) or list(run.metrics)[:1]
    found = [_value(run, name) for name in wanted]
    if (short := shortfall(run, floors)) > 0:
        found = [(BROKEN if minimized(name) else -BROKEN) * (1 + short) for name in wanted]
    return found if len(found) > 1 else found[0] if found else None


def _value(run: Run, name: str) -> float:
    value: float | None = None
    if name == "bytes":
        form = run.size_of("export") or run.size_of("build") or run.size_of("pack") or run.size_of("deploy")
        value = form.bytes if form else None
    elif name == "seconds":
        timed = run.latency and run.latency.candidate
        value = timed.seconds_per_image.median if timed else None
    elif name in run.metrics:
        value = run.metrics[name].candidate.mean
    if value is None:
        raise GateError(f"objective: was not measured in this run (got {name}); choose another, or drop what leaves it out")
    return float(value)
