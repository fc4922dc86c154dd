"""phrase: what the text encoders make of one chunk of the prompts that training data are made from."""

from diffopt.artifact import Pipeline, TrainTexts
from diffopt.groups.encoded import TrainPromptsView
from diffopt.groups.model import TextView
from diffopt.stage import Context, stage


@stage(version=1, when="train", probes=("numerics",))
def phrase(ctx: Context, model: TextView, train: TrainPromptsView, pipeline: Pipeline) -> TrainTexts:
    from diffopt.pipeline.texts import encode_all

    encode_all(ctx, pipeline, model, train.prompts.given(), train.batch_size)
