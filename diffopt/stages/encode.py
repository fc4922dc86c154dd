"""encode: what the text encoders make of the evaluation's prompts, once for the reference and every variant."""

from typing import Self

from diffopt.artifact import EvalEmbeddings, Pipeline
from diffopt.data.prompts import Prompts
from diffopt.groups import Eval
from diffopt.groups.model import TextView
from diffopt.stage import Context, stage
from diffopt.view import Choices, Group, View


class PromptsView(View, of=Eval):
    """The prompts that are drawn, and the batches in which they are encoded."""

    prompts: Prompts
    batch_size: int

    @classmethod
    def drawn_from(cls) -> frozenset[str]:
        return frozenset({"prompts", "size", "batch_size"})

    @classmethod
    def draw(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Eval)
        return [cls(prompts=group.prompts.part(0, group.size), batch_size=group.batch_size)]


@stage(version=1, when="eval", probes=("numerics",))
def encode(ctx: Context, model: TextView, eval: PromptsView, pipeline: Pipeline) -> EvalEmbeddings:
    from diffopt.pipeline.sampling import batches
    from diffopt.pipeline.texts import encoder, save

    texts = encoder(ctx, pipeline, model)
    todo = list(batches(eval.prompts.given(), eval.batch_size))
    save(ctx.out, (texts(prompts) for _, prompts in todo))
