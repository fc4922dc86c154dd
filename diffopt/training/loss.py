"""The loss: to the data, to the teacher's output, and to the outputs of its blocks."""

from typing import Any

import torch
from torch.nn.functional import mse_loss

from diffopt.groups.train import Distillation
from diffopt.models import Family
from diffopt.models.family import prediction
from diffopt.training.call import Caller, blocks, watched
from diffopt.training.examples import Batch
from diffopt.training.noise import Diffusion, Flow
from diffopt.training.teacher import Teacher


class Loss:
    """Of one backbone on one batch; every part is a mean over its rows."""

    def __init__(
        self, family: Family, noise: Flow | Diffusion, caller: Caller, teacher: Teacher | None, how: Distillation | None
    ):
        self.family, self.noise, self.caller, self.teacher, self.how = family, noise, caller, teacher, how

    def __call__(
        self, name: str, student: Any, plain: Any, batch: Batch, levels: tuple[float, float], device: torch.device
    ) -> dict[str, torch.Tensor]:
        """`loss`, and the parts it is the sum of. `student` is called, as accelerate has wrapped it; `plain` is the backbone
        within. Noise levels are drawn between the two `levels`.
        """
        latents, noise = batch.latents.to(device), batch.noise.to(device)
        texts = {n: x.to(device) for n, x in batch.texts.items()}
        tokens = self.family.pack(latents[:1])
        drawn = self.noise.levels(batch.normal, patches(plain, tokens), *levels).to(device)
        noisy, times = self.family.pack(self.noise.noised(latents, noise, drawn)), self.noise.timesteps(drawn)
        named = blocks(plain, self.family, self.how.blocks) if self.how else []
        with watched(plain, named) as ours:
            predicted = prediction(student(**self.caller.inputs(plain, noisy, times, texts), return_dict=False)).float()
            predicted = drawn_part(self.family, predicted, noisy)
            ours = dict(ours)
        found = {}
        if self.how is None or self.how.task:
            target = self.family.pack(self.noise.target(latents, noise, drawn)).float()
            found["task"] = mse_loss(predicted, target) * (self.how.task if self.how else 1.0)
        if self.how and self.teacher:
            taught = self.teacher.backbones[name]
            with watched(taught, named) as theirs:
                wanted = self.teacher(name, self.caller.inputs(taught, noisy, times, texts)).float()
            wanted = drawn_part(self.family, wanted, noisy)
            if self.how.output:
                found["output"] = mse_loss(predicted, wanted) * self.how.output
            if named:
                pairs = [(x.float(), y.float()) for n in named for x, y in zip(ours[n], theirs[n], strict=True)]
                sizes = _shared(torch.stack([y.square().mean() for _, y in pairs])).clamp_min(1e-12)
                each = [mse_loss(x, y) / size for (x, y), size in zip(pairs, sizes, strict=True)]
                found["hidden"] = torch.stack(each).mean() * self.how.hidden
        whole = torch.stack(list(found.values())).sum()
        if torch.distributed.is_initialized() and not {"task", "output"} & {*found}:
            whole = whole + 0.0 * predicted.sum()  # DDP waits for gradients of all that leads to an output
        return {"loss": whole, **found}


def drawn_part(family: Family, predicted: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """Without what is predicted for the tokens of a prompt's picture, which its pipeline drops."""
    return predicted[:, : noisy.shape[1]] if family.condition else predicted


def _shared(x: torch.Tensor) -> torch.Tensor:
    """The mean over all processes: what is compared is relative to the whole batch, however many share it."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(x)
        x = x / torch.distributed.get_world_size()
    return x


def patches(backbone: Any, latents: torch.Tensor) -> int:
    """Tokens of packed latents [b, tokens, channels], or that the backbone itself makes of those [b, channels, ...]: by these a
    scheduler's shift may depend."""
    if latents.dim() == 3:
        return latents.shape[1]
    patch = getattr(backbone.config, "patch_size", None) or 1
    sides = patch if isinstance(patch, (tuple, list)) else [patch] * (latents.dim() - 2)
    found = 1
    for extent, side in zip(latents.shape[-len(sides) :], sides, strict=True):
        found *= extent // side
    return found
