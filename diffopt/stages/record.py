"""record: run the full-precision model over one chunk of prompts and keep what its backbone was called with.

Where local Hessians are wanted of it too, both are kept of one pass, as `observe` does.
"""

from contextlib import AbstractContextManager, nullcontext

from diffopt.artifact import Embeddings, Pipeline, Recording
from diffopt.groups import CallView, ChunkView
from diffopt.stage import Context, stage


@stage(version=1, when="calib", probes=("numerics",), along="correlate")
def record(ctx: Context, model: CallView, calib: ChunkView, pipeline: Pipeline, texts: Embeddings, seed: int) -> Recording:
    from diffopt.pipeline.calibration import Calibration
    from diffopt.quantization.hessian import Hessians, correlated
    from diffopt.quantization.recorded_calls import recorded
    from diffopt.stages.correlate import keep

    run = ctx.held.get(pipeline.fingerprint, lambda: Calibration(ctx, pipeline))
    sums: AbstractContextManager[Hessians] = correlated(run.backbone) if ctx.along else nullcontext({})
    with sums as hessians, recorded(run.backbone) as calls, ctx.progress(calib.calls) as tick:
        run(texts, calib, model, seed, tick)
    calls.save(ctx.out)
    if ctx.along:
        keep(hessians, ctx.along)
