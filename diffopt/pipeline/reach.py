"""How many of the denoising steps call each of a pipeline's backbones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffopt.pipeline.foreign import config_of
from diffopt.pipeline.scheduler import check_steps


def reached(directory: Path, own: Any, backbones: Sequence[str], steps: int, where: str) -> dict[str, int]:
    """Steps by backbone, of the pipeline in `directory` with the scheduler `own`.

    Of two the first is called down to the timestep of `boundary_ratio` in model_index.json, as diffusers' WanPipeline does it;
    without one it alone. Raises PlanError, of the field `where`, for steps that the scheduler cannot take.
    """
    check_steps(own, steps, where)
    if len(backbones) < 2:
        return dict.fromkeys(backbones, steps)
    boundary = config_of(directory / "model_index.json").get("boundary_ratio")
    edge = boundary and boundary * own.config.num_train_timesteps
    high = sum(edge is None or bool(t >= edge) for t in own.timesteps)
    first, second, *rest = backbones
    return {first: high, second: len(own.timesteps) - high, **dict.fromkeys(rest, 0)}
