"""merge: the chunks of one calibration set together."""

from diffopt.artifact import CalibChunk, CalibStats
from diffopt.stage import Context, stage


@stage(version=1, when="calib")
def merge(ctx: Context, chunks: tuple[CalibChunk, ...]) -> CalibStats:
    from safetensors.torch import load_file, save_file

    from diffopt import extremes

    merged = extremes.merge([load_file(c.path / "extremes.safetensors") for c in chunks])
    save_file(merged, ctx.out / "extremes.safetensors")
