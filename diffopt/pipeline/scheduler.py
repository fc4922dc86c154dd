"""The noise schedule: the source's own, or another of diffusers' that can take over its settings."""

import json
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers

from diffopt.errors import PlanError

FLOW = "FlowMatch"


def scheduler(directory: Path, name: str | None) -> Any:
    """The scheduler of the pipeline in `directory`, or one of class `name` with its settings.

    Raises PlanError for a class that integrates something else than the model predicts.
    """
    config = json.loads((directory / "scheduler" / "scheduler_config.json").read_text())
    own = getattr(diffusers, config["_class_name"]).from_config(config)
    if name is None or name == type(own).__name__:
        return own
    other = getattr(diffusers, name)
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


def check_steps(own: Any, steps: int, where: str) -> None:
    """Raises PlanError for a number of denoising steps that the scheduler cannot take; `where` names the field."""
    most = own.config.num_train_timesteps
    reason = f"was trained with {most}" if steps > most else None
    if reason is None:
        try:
            own.set_timesteps(steps, **({"mu": 1.0} if own.config.get("use_dynamic_shifting") else {}))
        except (ValueError, IndexError, AssertionError) as e:
            reason = (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip(".")
    if reason:
        raise PlanError(f"{where}: {type(own).__name__} cannot take so many steps: {reason} (got {steps}); change {where}")


def flows(own: Any) -> bool:
    """Whether it integrates a rectified flow."""
    return type(own).__name__.startswith(FLOW) or bool(own.config.get("use_flow_sigmas"))
