"""recode_part: what slimmer text encoders make of one part of the evaluation's prompts, for the candidate."""

from diffopt.artifact import CandidatePartEmbeddings, Components, Pipeline
from diffopt.groups.model import TextView
from diffopt.groups.parts import PartPromptsView, slims_parted
from diffopt.stage import Context, stage


@stage(version=1, when="eval", only=slims_parted, probes=("numerics", "slimming"))
def recode_part(
    ctx: Context, model: TextView, eval: PartPromptsView, pipeline: Pipeline, components: Components
) -> CandidatePartEmbeddings:
    from diffopt.pipeline.texts import encode_all

    encode_all(ctx, pipeline, model, eval.prompts.given(), eval.batch_size, components)
