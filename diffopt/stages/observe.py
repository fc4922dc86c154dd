"""observe: run the full-precision model over one chunk of prompts and keep the extremes of every quantizer input."""

from diffopt.artifact import CalibChunk, Pipeline
from diffopt.groups import CallView, ChunkView
from diffopt.stage import Context, stage


@stage(version=2, when="calib", probes=("numerics", "modelopt"))
def observe(ctx: Context, model: CallView, calib: ChunkView, pipeline: Pipeline, seed: int) -> CalibChunk:
    from safetensors.torch import save_file

    from diffopt.extremes import observed
    from diffopt.models.open import batches, draw, family_of, open_pipeline
    from diffopt.step_extremes import StepExtremes

    pipe, family = open_pipeline(ctx, pipeline), family_of(pipeline)
    todo = list(batches(calib.prompts, calib.batch_size))
    steps = StepExtremes() if calib.per_step else None
    with observed(getattr(pipe, family.backbone), steps) as extremes, ctx.progress(len(todo) * calib.n_steps) as tick:

        def stepped() -> None:
            if steps:
                steps.end()
            tick()

        for first, prompts in todo:
            seeds = [seed + calib.start + first + i for i in range(len(prompts))]
            draw(pipe, prompts, seeds, calib.n_steps, family.arguments(model), decode=False, on_step=stepped)
    save_file({n: x.cpu().contiguous() for n, x in sorted(extremes.items())}, ctx.out / "extremes.safetensors")
    if steps:
        save_file(steps.table(len(todo)), ctx.out / "steps.safetensors")
