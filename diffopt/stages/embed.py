"""embed: what the text encoders make of one chunk of prompts, so that they need not be in memory beside the backbone."""

from typing import Any, Self

from diffopt.artifact import Embeddings, Pipeline
from diffopt.data.prompts import Prompts
from diffopt.groups import Calib
from diffopt.groups.model import TextView
from diffopt.stage import Context, stage
from diffopt.view import Choices, Group, View


class PromptsView(View, of=Calib):
    """The prompts of one chunk, and the batches in which they are encoded."""

    prompts: Prompts
    batch_size: int

    @classmethod
    def drawn_from(cls) -> frozenset[str]:
        return frozenset({"prompts", "size", "batch_size", "chunk"})

    @classmethod
    def draw(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Calib)
        return [cls(prompts=part, batch_size=group.batch_size) for _, part in group.chunks()]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        return self.model_dump(mode="json")


@stage(version=1, when="calib", probes=("numerics",))
def embed(ctx: Context, model: TextView, calib: PromptsView, pipeline: Pipeline) -> Embeddings:
    from diffopt.pipeline.sampling import batches
    from diffopt.pipeline.texts import encoder, save

    encode = encoder(ctx, pipeline, model)
    save(ctx.out, (encode(prompts) for _, prompts in batches(calib.prompts.given(), calib.batch_size)))
