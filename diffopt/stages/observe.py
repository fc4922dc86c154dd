"""observe: run the full-precision model over one chunk of prompts and keep the extremes of every quantizer input.

Where local Hessians or histograms are wanted of it too, all are kept of one pass: drawing is what takes the time.
"""

from diffopt.artifact import CalibChunk, Embeddings, Pipeline
from diffopt.groups import CallView, ChunkView
from diffopt.stage import Context, stage


@stage(version=2, when="calib", probes=("numerics", "modelopt"), along=("correlate", "count"))
def observe(ctx: Context, model: CallView, calib: ChunkView, pipeline: Pipeline, texts: Embeddings, seed: int) -> CalibChunk:
    from safetensors.torch import save_file

    from diffopt.pipeline.calibration import Calibration
    from diffopt.quantization.companions import keeping
    from diffopt.quantization.extremes import Extremes
    from diffopt.quantization.observer import ChangedInPlace, observed
    from diffopt.quantization.step_extremes import StepExtremes

    run = ctx.held.get(pipeline.fingerprint, lambda: Calibration(ctx, pipeline))

    def watched(hold: bool) -> tuple[Extremes, StepExtremes | None]:
        steps = StepExtremes() if calib.per_step else None
        beside = keeping(run.backbone, ctx.along)
        with beside, observed(run.backbone, steps, hold=hold) as extremes, ctx.progress(calib.calls) as tick:

            def stepped() -> None:
                if steps:
                    steps.end()
                tick()

            run(texts, calib, model, seed, stepped)
        return extremes, steps

    try:
        extremes, steps = watched(hold=not ctx.lean)
    except ChangedInPlace:  # in a backbone of someone else's: slower, the same numbers
        extremes, steps = watched(hold=False)
    save_file({n: x.cpu().contiguous() for n, x in sorted(extremes.items())}, ctx.out / "extremes.safetensors")
    if steps:
        save_file(steps.table(calib.batches), ctx.out / "steps.safetensors")
