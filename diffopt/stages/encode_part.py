"""encode_part: what the text encoders make of one part of the evaluation's prompts."""

from diffopt.artifact import PartEmbeddings, Pipeline
from diffopt.groups.model import TextView
from diffopt.groups.parts import PartPromptsView, parted
from diffopt.stage import Context, stage


@stage(version=1, when="eval", probes=("numerics",), only=parted)
def encode_part(ctx: Context, model: TextView, eval: PartPromptsView, pipeline: Pipeline) -> PartEmbeddings:
    from diffopt.pipeline.texts import encode_all

    encode_all(ctx, pipeline, model, eval.prompts.given(), eval.batch_size)
