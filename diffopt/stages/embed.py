"""embed: what the text encoders make of one chunk of prompts, so that they need not be in memory beside the backbone."""

from diffopt.artifact import Embeddings, Pipeline
from diffopt.groups.encoded import CalibPromptsView
from diffopt.groups.model import TextView
from diffopt.stage import Context, stage


@stage(version=1, when="calib", probes=("numerics",))
def embed(ctx: Context, model: TextView, calib: CalibPromptsView, pipeline: Pipeline) -> Embeddings:
    from diffopt.pipeline.texts import encode_all

    encode_all(ctx, pipeline, model, calib.prompts.given(), calib.batch_size)
