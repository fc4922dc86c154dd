"""parity: the native runtime's backbone beside the simulated one, in every layer, in every denoising step, and in pictures."""

from typing import Any, Self

from diffopt.artifact import Checkpoint, EvalEmbeddings, Parity, Pipeline
from diffopt.data.prompts import Prompts
from diffopt.groups import CallView, Eval
from diffopt.stage import Context, stage
from diffopt.view import Choices, Group, View


class ParityView(View, of=Eval):
    """One batch: of the first prompts."""

    prompts: Prompts
    batch_size: int
    steps: int

    @classmethod
    def fields_read(cls) -> frozenset[str]:
        return frozenset({"prompts", "size", "batch_size", "steps"})

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Eval)
        few = group.prompts.part(0, min(group.size, group.batch_size))
        return [cls(prompts=few, batch_size=group.batch_size, steps=group.steps)]


@stage(version=1, when="eval", probes=("numerics", "modelopt"))
def parity(
    ctx: Context,
    model: CallView,
    eval: ParityView,
    pipeline: Pipeline,
    texts: EvalEmbeddings,
    checkpoint: Checkpoint,
    seed: int,
) -> Parity:
    from diffopt.pipeline.draw import draw
    from diffopt.pipeline.open import family_of
    from diffopt.pipeline.texts import first, load
    from diffopt.runtimes.parity import SideBySide

    many, arguments = len(eval.prompts), family_of(pipeline).arguments(model)
    batch, seeds = first(load(texts, ctx.device), many)[0], [seed + i for i in range(many)]

    def drawing(pipe: Any, on_step: Any) -> Any:
        return draw(pipe, batch, seeds, eval.steps, arguments, on_step=on_step)

    with ctx.progress(4 * eval.steps) as tick:
        SideBySide(ctx, pipeline, checkpoint, drawing, tick).beside().write(ctx.out)
