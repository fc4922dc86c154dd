"""Which of a model's backbones calibration and pictures reach: of several, a few denoising steps may leave one out."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from diffopt import models
from diffopt.errors import PlanError
from diffopt.pipeline.foreign import config_of
from diffopt.view import Choices

MOST = 100
"""Denoising steps up to which a number that reaches every backbone is sought."""


def planned(choices: Choices) -> list[str]:
    """Notes on it, where the model's files, or those of its architecture, are here. Raises PlanError as `told` does."""
    model = choices.model
    if model is None or len(models.of(model).backbones) < 2:
        return []
    directory = model.origin.directory or (model.architecture.directory if model.architecture else None)
    needed = ("model_index.json", "scheduler/scheduler_config.json")
    if directory is None or not all((directory / name).is_file() for name in needed):
        return []
    index = config_of(directory / "model_index.json")
    names = [n for n in models.of(model).backbones if isinstance(index.get(n), list) and index[n][0]]
    return told(choices, directory, names)


def told(choices: Choices, directory: Path, names: Sequence[str]) -> list[str]:
    """A note for each number of steps. Raises PlanError where calibration does not reach a backbone that it is for."""
    if len(names) < 2 or choices.model is None:
        return []
    from diffopt.pipeline.reach import reached
    from diffopt.pipeline.scheduler import scheduler

    own = scheduler(directory, choices.model.scheduler)
    notes = []
    if choices.calib:
        where, steps = "calib.n_steps", choices.calib.n_steps
        found = reached(directory, own, names, steps, where)
        lost = [n for n, many in found.items() if not many and not _excluded(n, choices)]
        if lost:
            enough = next((n for n in range(steps + 1, MOST) if all(reached(directory, own, names, n, where).values())), None)
            advice = [f"set calib.n_steps={enough}"] if enough else []
            advice += [f"add {', '.join(lost)} to format.exclude"] if choices.format else []
            raise PlanError(_unreached(found, lost, steps, ", or ".join(advice) or "choose another model.scheduler"))
        notes.append(_note(where, steps, found))
    if choices.eval:
        notes.append(_note("eval.steps", choices.eval.steps, reached(directory, own, names, choices.eval.steps, "eval.steps")))
    return notes


def _excluded(name: str, choices: Choices) -> bool:
    """Whether nothing of a backbone is quantized."""
    globs = choices.format.exclude if choices.format else []
    return any(fnmatch(f"{name}.blocks.0.layer.", f"{g}.*") for g in globs)


def _unreached(found: dict[str, int], lost: list[str], steps: int, advice: str) -> str:
    calls = " and ".join(n for n, many in found.items() if many)
    return f"calib.n_steps: reaches {calls} alone, so {' and '.join(lost)} would not be calibrated (got {steps}); {advice}"


def _note(where: str, steps: int, found: dict[str, int]) -> str:
    return f"{where}={steps} calls " + " and ".join(f"{name} in {many}" for name, many in found.items()) + " denoising steps"
