"""correlate: run the full-precision model over one chunk of prompts and keep the local Hessians of its linear layers.

Where histograms of the inputs are wanted of it too, both are kept of one pass, as `observe` does.
"""

from diffopt.artifact import Embeddings, HessianChunk, Pipeline
from diffopt.groups import CallView, ChunkView
from diffopt.stage import Context, stage


@stage(version=2, when="calib", probes=("numerics",), along=("count",))
def correlate(
    ctx: Context, model: CallView, calib: ChunkView, pipeline: Pipeline, texts: Embeddings, seed: int
) -> HessianChunk:
    from diffopt.pipeline.calibration import Calibration
    from diffopt.quantization.companions import keeping

    run = ctx.held.get(pipeline.fingerprint, lambda: Calibration(ctx, pipeline))
    with keeping(run.backbone, {"correlate": ctx.out, **ctx.along}), ctx.progress(calib.calls) as tick:
        run(texts, calib, model, seed, tick)
