"""observe: run the full-precision model over one chunk of prompts and keep the extremes of every quantizer input."""

from typing import Any, Self

from diffopt.artifact import CalibChunk, Pipeline
from diffopt.groups import Calib, CallView
from diffopt.prompts import Prompts
from diffopt.stage import Context, stage
from diffopt.view import Choices, Group, View


class ChunkView(View, of=Calib):
    """One chunk. A chunk's fingerprint has its own prompts and place, not the size of the set: sets share chunks."""

    prompts: Prompts
    start: int
    """Index of the first prompt, which decides the seeds."""
    batch_size: int
    n_steps: int

    @classmethod
    def drawn_from(cls) -> frozenset[str]:
        return frozenset({"prompts", "size", "batch_size", "chunk", "n_steps"})

    @classmethod
    def draw(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Calib)
        return [
            cls(
                prompts=group.prompts.part(start, min(start + group.chunk, group.size)),
                start=start,
                batch_size=group.batch_size,
                n_steps=group.n_steps,
            )
            for start in range(0, group.size, group.chunk)
        ]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        return self.model_dump(mode="json")


@stage(version=1, when="calib", probes=("numerics", "modelopt"))
def observe(ctx: Context, model: CallView, calib: ChunkView, pipeline: Pipeline, seed: int) -> CalibChunk:
    from safetensors.torch import save_file

    from diffopt.extremes import observed
    from diffopt.models.open import batches, draw, family_of, open_pipeline

    pipe, family = open_pipeline(ctx, pipeline), family_of(pipeline)
    todo = list(batches(calib.prompts, calib.batch_size))
    with observed(getattr(pipe, family.backbone)) as extremes, ctx.progress(len(todo) * calib.n_steps) as tick:
        for first, prompts in todo:
            seeds = [seed + calib.start + first + i for i in range(len(prompts))]
            draw(pipe, prompts, seeds, calib.n_steps, family.arguments(model), decode=False, on_step=tick)
    save_file({n: x.cpu().contiguous() for n, x in sorted(extremes.items())}, ctx.out / "extremes.safetensors")
