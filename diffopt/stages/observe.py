"""observe: run the full-precision model over one chunk of prompts and keep the extremes of every quantizer input."""

from typing import Any, Self

from diffopt.artifact import CalibChunk, Embeddings, Pipeline
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

    @property
    def calls(self) -> int:
        """Denoising steps of all batches together."""
        return -(-len(self.prompts) // self.batch_size) * self.n_steps

    @classmethod
    def drawn_from(cls) -> frozenset[str]:
        return frozenset({"prompts", "size", "batch_size", "chunk", "n_steps"})

    @classmethod
    def draw(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Calib)
        return [
            cls(prompts=part, start=start, batch_size=group.batch_size, n_steps=group.n_steps) for start, part in group.chunks()
        ]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        return self.model_dump(mode="json")


@stage(version=2, when="calib", probes=("numerics", "modelopt"))
def observe(ctx: Context, model: CallView, calib: ChunkView, pipeline: Pipeline, texts: Embeddings, seed: int) -> CalibChunk:
    from safetensors.torch import save_file

    from diffopt.extremes import observed
    from diffopt.pipeline.calibration import Calibration

    run = ctx.held.get(pipeline.fingerprint, lambda: Calibration(ctx, pipeline))
    with observed(run.backbone) as extremes, ctx.progress(calib.calls) as tick:
        run(texts, calib, model, seed, tick)
    save_file({n: x.cpu().contiguous() for n, x in sorted(extremes.items())}, ctx.out / "extremes.safetensors")
