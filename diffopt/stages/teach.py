"""teach: the latents that the full-precision model draws of one chunk of prompts, to be trained on."""

from typing import Any, Self

from diffopt.artifact import Pipeline, TrainLatents, TrainTexts
from diffopt.data.prompts import Prompts
from diffopt.errors import GateError
from diffopt.groups import CallView, Train
from diffopt.groups.data import STEPS
from diffopt.stage import Context, stage
from diffopt.view import Choices, Group, View


class DrawnView(View, of=Train):
    """One chunk. Its fingerprint has its own prompts and place, not the size of the set: sets share chunks."""

    prompts: Prompts
    start: int
    """Index of the first item, which decides the seeds."""
    batch_size: int
    n_steps: int

    @classmethod
    def fields_read(cls) -> frozenset[str]:
        return frozenset({"data"})

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Train)
        how = {"batch_size": group.data.batch, "n_steps": group.data.steps or STEPS}
        return [cls(prompts=part, start=start, **how) for start, part in group.data.chunks(choices)]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        return self.model_dump(mode="json")


@stage(version=1, when="train", probes=("numerics",))
def teach(ctx: Context, model: CallView, train: DrawnView, pipeline: Pipeline, texts: TrainTexts, seed: int) -> TrainLatents:
    import torch
    from safetensors.torch import save_file

    from diffopt.pipeline.calibration import Calibration

    run = ctx.held.get(pipeline.fingerprint, lambda: Calibration(ctx, pipeline))
    with ctx.progress(-(-len(train.prompts) // train.batch_size) * train.n_steps) as tick:
        drawn = [torch.from_numpy(x) for x in run(texts, train, model, seed, tick)]
    latents = torch.cat([run.family.unpack(run.pipe, x, model) for x in drawn])
    if not latents.isfinite().all():
        raise GateError("teach: the model draws NaN or inf (got a broken model); set model.dtype=float32")
    save_file({"latents": latents.contiguous()}, ctx.out / "latents.safetensors")
