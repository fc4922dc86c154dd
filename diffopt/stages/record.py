"""record: run the full-precision model over one chunk of prompts and keep what its backbone was called with."""

from diffopt.artifact import Pipeline, Recording
from diffopt.groups import CallView, ChunkView
from diffopt.stage import Context, stage


@stage(version=1, when="calib", probes=("numerics",))
def record(ctx: Context, model: CallView, calib: ChunkView, pipeline: Pipeline, seed: int) -> Recording:
    from diffopt.models.open import batches, draw, family_of, open_pipeline
    from diffopt.recording import recorded

    pipe, family = open_pipeline(ctx, pipeline), family_of(pipeline)
    todo = list(batches(calib.prompts, calib.batch_size))
    with recorded(getattr(pipe, family.backbone)) as calls, ctx.progress(len(todo) * calib.n_steps) as tick:
        for first, prompts in todo:
            seeds = [seed + calib.start + first + i for i in range(len(prompts))]
            draw(pipe, prompts, seeds, calib.n_steps, family.arguments(model), decode=False, on_step=tick)
    calls.save(ctx.out)
