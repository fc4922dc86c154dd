"""record: run the full-precision model over one chunk of prompts and keep what its backbone was called with.

Where local Hessians or histograms are wanted of it too, all are kept of one pass, as `observe` does.
"""

from diffopt.artifact import Embeddings, Pipeline, Recording
from diffopt.groups import CallView, ChunkView
from diffopt.stage import Context, stage


@stage(version=1, when="calib", probes=("numerics",), along=("correlate", "count"))
def record(ctx: Context, model: CallView, calib: ChunkView, pipeline: Pipeline, texts: Embeddings, seed: int) -> Recording:
    from diffopt.pipeline.calibration import Calibration
    from diffopt.quantization.companions import keeping
    from diffopt.quantization.recorded_calls import recorded

    run = ctx.held.get(pipeline.fingerprint, lambda: Calibration(ctx, pipeline))
    with keeping(run.backbone, ctx.along), recorded(run.backbone) as calls, ctx.progress(calib.calls) as tick:
        run(texts, calib, model, seed, tick)
    calls.save(ctx.out)
