"""train: on from a calibrated checkpoint with the quantizers in place, on data (QAT) or by a teacher (QAD)."""

from diffopt.artifact import Checkpoint, Pipeline, TrainSet
from diffopt.groups import CallView, TrainView
from diffopt.stage import Context, stage


@stage(version=1, when="train", probes=("numerics", "modelopt"))
def train(
    ctx: Context, model: CallView, train: TrainView, pipeline: Pipeline, data: TrainSet, checkpoint: Checkpoint, seed: int
) -> Checkpoint:
    from diffopt.training.run import run
    from diffopt.training.task import Task

    run(ctx, Task(model, train, pipeline, checkpoint, data, seed))
