"""encode: what the text encoders make of the evaluation's prompts, once for the reference and every variant."""

from diffopt.artifact import EvalEmbeddings, Pipeline
from diffopt.groups.encoded import EvalPromptsView
from diffopt.groups.model import TextView
from diffopt.stage import Context, stage


@stage(version=1, when="eval", probes=("numerics",))
def encode(ctx: Context, model: TextView, eval: EvalPromptsView, pipeline: Pipeline) -> EvalEmbeddings:
    from diffopt.pipeline.texts import encode_all

    encode_all(ctx, pipeline, model, eval.prompts.given(), eval.batch_size)
