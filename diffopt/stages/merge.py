"""merge: the chunks of one calibration set together."""

from diffopt.artifact import CalibChunk, CalibStats
from diffopt.stage import Context, stage


@stage(version=1, when="calib")
def merge(ctx: Context, chunks: tuple[CalibChunk, ...]) -> CalibStats:
    from safetensors.torch import load_file, save_file

    from diffopt.quantization import extremes, step_extremes

    save_file(extremes.merge([load_file(c.path / "extremes.safetensors") for c in chunks]), ctx.out / "extremes.safetensors")
    if all((c.path / "steps.safetensors").is_file() for c in chunks):
        steps = step_extremes.merge([load_file(c.path / "steps.safetensors") for c in chunks])
        save_file(steps, ctx.out / "steps.safetensors")
