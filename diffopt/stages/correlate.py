"""correlate: run the full-precision model over one chunk of prompts and keep the local Hessians of its linear layers."""

from pathlib import Path
from typing import Any

from diffopt.artifact import Embeddings, HessianChunk, Pipeline
from diffopt.errors import GateError
from diffopt.groups import CallView, ChunkView
from diffopt.stage import Context, stage


@stage(version=1, when="calib", probes=("numerics",))
def correlate(
    ctx: Context, model: CallView, calib: ChunkView, pipeline: Pipeline, texts: Embeddings, seed: int
) -> HessianChunk:
    from diffopt.pipeline.calibration import Calibration
    from diffopt.quantization.hessian import correlated

    run = ctx.held.get(pipeline.fingerprint, lambda: Calibration(ctx, pipeline))
    with correlated(run.backbone) as hessians, ctx.progress(calib.calls) as tick:
        run(texts, calib, model, seed, tick)
    keep(hessians, ctx.out)


def keep(hessians: dict[str, Any], out: Path) -> None:
    """Write the artifact. Raises GateError for inputs that no scale can be found of."""
    from safetensors.torch import save_file

    kept = {n: x.cpu().contiguous() for n, x in sorted(hessians.items())}
    if broken := [n for n, x in kept.items() if not x.isfinite().all()]:
        raise GateError(f"correlate: {broken[0]} saw inf or NaN (got {len(broken)} such); set another model.dtype")
    save_file(kept, out / "hessians.safetensors")
