"""reference: the evaluation's prompts and seeds in full precision, with no cache, by torch."""

from typing import Annotated

from diffopt.artifact import EvalEmbeddings, Pipeline, ReferenceImages, ReferencePart
from diffopt.groups import CallView
from diffopt.groups.eval import ReferenceView
from diffopt.groups.parts import parted, whole
from diffopt.stage import Context, Under, stage


@stage(version=2, when="eval", probes=("numerics",))
def reference(
    ctx: Context,
    model: CallView,
    eval: ReferenceView,
    pipeline: Pipeline,
    texts: Annotated[EvalEmbeddings | None, Under(whole, silent=True)],
    seed: int,
    parts: Annotated[tuple[ReferencePart, ...], Under(parted, silent=True)] = (),
) -> ReferenceImages:
    from diffopt.data import picture_parts, pictures
    from diffopt.pipeline.full_precision import draw_reference

    if texts is None:
        picture_parts.join(ctx.out, [p.path for p in parts])
    else:
        draw_reference(ctx, model, eval, pipeline, texts, seed)
    pictures.check_distinct(ctx.out, eval.prompts.prompts)
