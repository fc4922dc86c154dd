"""phrase: what the text encoders make of one chunk of the prompts that training data are drawn from."""

from typing import Any, Self

from diffopt.artifact import Pipeline, TrainTexts
from diffopt.data.prompts import Prompts
from diffopt.groups import Train
from diffopt.groups.model import TextView
from diffopt.stage import Context, stage
from diffopt.view import Choices, Group, View


class PromptsView(View, of=Train):
    """The prompts of one chunk, and the batches in which they are encoded."""

    prompts: Prompts
    batch_size: int

    @classmethod
    def drawn_from(cls) -> frozenset[str]:
        return frozenset({"data"})

    @classmethod
    def draw(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Train)
        return [cls(prompts=part, batch_size=group.data.batch) for _, part in group.data.chunks(choices)]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        return self.model_dump(mode="json")


@stage(version=1, when="train", probes=("numerics",))
def phrase(ctx: Context, model: TextView, train: PromptsView, pipeline: Pipeline) -> TrainTexts:
    from diffopt.pipeline.sampling import batches
    from diffopt.pipeline.texts import encoder, save

    encode = encoder(ctx, pipeline, model)
    save(ctx.out, (encode(prompts) for _, prompts in batches(train.prompts, train.batch_size)))
