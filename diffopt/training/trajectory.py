"""The loss of whole drawings: where student and teacher arrive that each went down a sampler's steps by itself.

A single call's loss has the error of each step at its full size. In a picture the errors of the steps are added up: what the
rounding of inputs does differs from step to step and mostly cancels, what weights do wrong mostly adds up, and later steps
undo much of what earlier ones did. This loss is of what is left, so that a training on it may round inputs.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

from diffopt.errors import PlanError
from diffopt.groups.train import Trajectory
from diffopt.models import Family
from diffopt.models.family import prediction
from diffopt.training.call import Caller
from diffopt.training.examples import Batch
from diffopt.training.loss import drawn_part, patches
from diffopt.training.noise import Diffusion, Flow
from diffopt.training.teacher import Teacher


class Drawing:
    """Called as Loss is. Drawn without guidance, by the scheduler's first-order step."""

    def __init__(
        self, family: Family, noise: Flow | Diffusion, caller: Caller, teacher: Teacher, how: Trajectory, sparing: bool = False
    ):
        """`sparing` keeps nothing of a call but where it began, and makes the call once more for the gradient."""
        self.family, self.noise, self.caller, self.teacher, self.how = family, noise, caller, teacher, how
        self.sparing = sparing

    def __call__(
        self, name: str, student: Any, plain: Any, batch: Batch, levels: tuple[float, float], device: torch.device
    ) -> dict[str, torch.Tensor]:
        """`loss`, which is `trajectory`: the mean squared difference of the latents at the end of a path."""
        latents, noise = batch.latents.to(device), batch.noise.to(device)
        texts = {n: x.to(device) for n, x in batch.texts.items()}
        path = self.path(batch.normal, patches(plain, self.family.pack(latents[:1])), *levels).to(device)
        start = self.noise.noised(latents, noise, path[0])
        if self.how.length is None:
            start = noise  # a diffusion's first timestep leaves a trace of the latents
        packed, taught = self.family.pack(start).float(), self.teacher.backbones[name]

        def called(inputs: dict[str, Any]) -> torch.Tensor:
            return prediction(student(**inputs, return_dict=False))

        def again(inputs: dict[str, Any]) -> torch.Tensor:
            found: torch.Tensor = checkpoint(called, inputs, use_reentrant=False)
            return found

        with torch.no_grad():
            wanted = self._arrived(lambda inputs: self.teacher(name, inputs), taught, packed, path, texts)
        found = self._arrived(again if self.sparing else called, plain, packed, path, texts)
        loss = mse_loss(found, wanted)
        return {"loss": loss, "trajectory": loss}

    def path(self, normal: torch.Tensor, tokens: int, low: float, high: float) -> torch.Tensor:
        """[calls + 1, b]: the levels that each row goes through, of those between the two; it begins where its number of
        `normal` [b], standard normal numbers, says. Raises PlanError where there is no step between them."""
        grid = self.noise.grid(self.how.steps, tokens)
        own = torch.arange(self.how.steps)
        if (low, high) != (0.0, 1.0):  # of two experts, which flows alone have
            own = own[(grid[:-1] >= low) & ((grid[:-1] < high) | (high == 1.0))]
        calls = min(self.how.calls, len(own))
        if not calls:
            raise PlanError(
                f"train.distillation.trajectory.steps: one of the two experts would have none (got {self.how.steps}); raise it"
            )
        first = (torch.special.ndtr(normal.double()) * (len(own) - calls + 1)).long().clamp(max=len(own) - calls)
        return grid[own[first] + torch.arange(calls + 1)[:, None]]

    def _arrived(
        self,
        call: Callable[[dict[str, Any]], torch.Tensor],
        backbone: Any,
        packed: torch.Tensor,
        path: torch.Tensor,
        texts: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        for before, after in pairwise(path):
            predicted = call(self.caller.inputs(backbone, packed, self.noise.timesteps(before), texts)).float()
            packed = self.noise.moved(packed, drawn_part(self.family, predicted, packed), before, after)
        return packed
