"""count: run the full-precision model over one chunk of prompts and keep how large the inputs of its layers are."""

from diffopt.artifact import Embeddings, HistogramChunk, Pipeline
from diffopt.groups import CallView, ChunkView
from diffopt.stage import Context, stage


@stage(version=1, when="calib", probes=("numerics",))
def count(ctx: Context, model: CallView, calib: ChunkView, pipeline: Pipeline, texts: Embeddings, seed: int) -> HistogramChunk:
    from diffopt.pipeline.calibration import Calibration
    from diffopt.quantization.companions import keeping

    run = ctx.held.get(pipeline.fingerprint, lambda: Calibration(ctx, pipeline))
    with keeping(run.backbone, {"count": ctx.out}), ctx.progress(calib.calls) as tick:
        run(texts, calib, model, seed, tick)
