"""reference_part: one part of the evaluation's prompts in full precision, as `reference` draws all of them."""

from diffopt.artifact import PartEmbeddings, Pipeline, ReferencePart
from diffopt.groups import CallView
from diffopt.groups.parts import ReferencePartView, parted
from diffopt.stage import Context, stage


@stage(version=1, when="eval", probes=("numerics",), only=parted)
def reference_part(
    ctx: Context, model: CallView, eval: ReferencePartView, pipeline: Pipeline, texts: PartEmbeddings, seed: int
) -> ReferencePart:
    from diffopt.pipeline.full_precision import draw_reference

    draw_reference(ctx, model, eval, pipeline, texts, seed + eval.start)
