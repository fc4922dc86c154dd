"""headroom: of n calibration prompts, the next one's extreme is above all with a chance of 1/(n+1); so widen by that."""

from diffopt.artifact import CalibStats
from diffopt.groups import Calib
from diffopt.stage import Context, stage
from diffopt.view import Choices, View


class SizeView(View, of=Calib):
    size: int


def few(choices: Choices) -> bool:
    calib = choices.calib  # of few prompts, and scales are plain maxima
    return calib is not None and calib.size < 8 and (calib.percentile, calib.collect_method) == (1, "default")


@stage(version=1, when="calib", only=few)
def headroom(ctx: Context, calib: SizeView, stats: CalibStats) -> CalibStats:
    from safetensors.torch import load_file, save_file

    extremes = load_file(stats.path / "extremes.safetensors")
    wider = {name: x * (1 + 1 / (calib.size + 1)) for name, x in extremes.items()}
    save_file(wider, ctx.out / "extremes.safetensors")
