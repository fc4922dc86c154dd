"""recode: what slimmer text encoders make of the evaluation's prompts, for the candidate; the reference has the full ones'."""

from diffopt.artifact import CandidateEmbeddings, Components, Pipeline
from diffopt.groups.encoded import EvalPromptsView
from diffopt.groups.format import slims
from diffopt.groups.model import TextView
from diffopt.stage import Context, stage


@stage(version=1, when="eval", only=slims, probes=("numerics", "slimming"))
def recode(
    ctx: Context, model: TextView, eval: EvalPromptsView, pipeline: Pipeline, components: Components
) -> CandidateEmbeddings:
    from diffopt.pipeline.texts import encode_all

    encode_all(ctx, pipeline, model, eval.prompts.given(), eval.batch_size, components)
