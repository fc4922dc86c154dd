"""The noise schedule: the source's own, or another of diffusers' that can take over its settings."""

from inspect import signature
from pathlib import Path
from typing import Any

from diffopt.errors import PlanError
from diffopt.models.family import Json
from diffopt.pipeline.foreign import config_of, made, reading

SETTINGS = Path("scheduler", "scheduler_config.json")
FLOW = "FlowMatch"
PLAIN = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers that take any number of steps up to that which they were trained with."""


def scheduler(directory: Path, name: str | None) -> Any:
    """The scheduler of the pipeline in `directory`, or one of class `name` with its settings.

    Raises PlanError for a class that integrates something else than the model predicts, or needs a package that is not there.
    """
    import diffusers

    config = recorded(directory)
    with reading(directory / SETTINGS):
        own = made(getattr(diffusers, config["_class_name"]), config)
    if name is None or name == type(own).__name__:
        return own
    other = getattr(diffusers, name)
    if absent := [x for x in getattr(other, "_backends", ()) if x != "torch"]:  # diffusers' stand-in for a class
        raise PlanError(f"model.scheduler: needs the package {absent[-1]} (got {name!r}); install it, or choose another")
    there = [c.__name__ for c in own.compatibles]
    if flows(own):
        settings = {} if name.startswith(FLOW) else {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        if name.startswith(FLOW) or "use_flow_sigmas" in signature(other.__init__).parameters:
            return other.from_config(own.config, **settings)
        there = sorted(n for n in dir(diffusers) if n.startswith(FLOW))
    elif name in there and not name.startswith(FLOW):
        return other.from_config(own.config)
    raise PlanError(
        f"model.scheduler: does not go with this model, whose own is {type(own).__name__} (got {name!r}); "
        f"choose one of {', '.join(sorted(there))}"
    )


def recorded(directory: Path) -> Json:
    """Of the pipeline's own scheduler."""
    return config_of(directory / SETTINGS)


def plain(config: Json, name: str | None) -> bool:
    """Whether the scheduler, one of class `name` where there is one, takes every number of steps that it was trained with."""
    return (name or config.get("_class_name")) in PLAIN and name in (None, config.get("_class_name"))


def too_many(config: Json, steps: int, where: str) -> str | None:
    """Of more steps than a scheduler of these settings was trained with; `where` names the field."""
    most = config.get("num_train_timesteps", 1000)
    if not isinstance(most, int | float) or steps <= most:  # what is no number is refused where the config is read
        return None
    return _refusal(str(config.get("_class_name")), f"was trained with {most}", steps, where)


def _refusal(kind: str, reason: str, steps: int, where: str) -> str:
    return f"{where}: {kind} cannot take so many steps: {reason} (got {steps}); change {where}"


def check_steps(own: Any, steps: int, where: str) -> None:
    """Raises PlanError for a number of denoising steps that the scheduler cannot take; `where` names the field."""
    if line := too_many({**own.config, "_class_name": type(own).__name__}, steps, where):
        raise PlanError(line)
    try:
        own.set_timesteps(steps, **({"mu": 1.0} if own.config.get("use_dynamic_shifting") else {}))
    except (ValueError, LookupError, AssertionError, ArithmeticError, TypeError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip(".")
        raise PlanError(_refusal(type(own).__name__, reason, steps, where)) from None


def flows(own: Any) -> bool:
    """Whether it integrates a rectified flow."""
    return type(own).__name__.startswith(FLOW) or bool(own.config.get("use_flow_sigmas"))
