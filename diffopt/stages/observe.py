"""observe: run the full-precision model over one chunk of prompts and keep the extremes of every quantizer input.

Where local Hessians are wanted of it too, both are kept of one pass: drawing is what takes the time.
"""

from contextlib import AbstractContextManager, nullcontext

from diffopt.artifact import CalibChunk, Embeddings, Pipeline
from diffopt.groups import CallView, ChunkView
from diffopt.stage import Context, stage


@stage(version=2, when="calib", probes=("numerics", "modelopt"), along="correlate")
def observe(ctx: Context, model: CallView, calib: ChunkView, pipeline: Pipeline, texts: Embeddings, seed: int) -> CalibChunk:
    from safetensors.torch import save_file

    from diffopt.pipeline.calibration import Calibration
    from diffopt.quantization.extremes import Extremes
    from diffopt.quantization.hessian import Hessians, correlated
    from diffopt.quantization.observer import ChangedInPlace, observed
    from diffopt.quantization.step_extremes import StepExtremes
    from diffopt.stages.correlate import keep

    run = ctx.held.get(pipeline.fingerprint, lambda: Calibration(ctx, pipeline))

    def watched(hold: bool) -> tuple[Extremes, StepExtremes | None, Hessians]:
        steps = StepExtremes() if calib.per_step else None
        sums: AbstractContextManager[Hessians] = correlated(run.backbone) if ctx.along else nullcontext({})
        with sums as hessians, observed(run.backbone, steps, hold=hold) as extremes, ctx.progress(calib.calls) as tick:

            def stepped() -> None:
                if steps:
                    steps.end()
                tick()

            run(texts, calib, model, seed, stepped)
        return extremes, steps, hessians

    try:
        extremes, steps, hessians = watched(hold=not ctx.lean)
    except ChangedInPlace:  # in a backbone of someone else's: slower, the same numbers
        extremes, steps, hessians = watched(hold=False)
    save_file({n: x.cpu().contiguous() for n, x in sorted(extremes.items())}, ctx.out / "extremes.safetensors")
    if steps:
        save_file(steps.table(calib.batches), ctx.out / "steps.safetensors")
    if ctx.along:
        keep(hessians, ctx.along)
