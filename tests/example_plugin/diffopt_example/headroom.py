"""headroom: of n calibration prompts, the next one's extreme is above all with a chance of 1/(n+1); so widen by that."""

from pydantic import Field

from diffopt.artifact import CalibStats
from diffopt.groups import Calib
from diffopt.stage import Context, stage
from diffopt.view import Choices, Group, View


class Headroom(Group):
    share: float = Field(gt=0, le=1)
    """Of the chance that the next prompt exceeds all, by which extremes are widened."""


class ShareView(View, of=Headroom):
    share: float


class SizeView(View, of=Calib):
    size: int


def plain(choices: Choices) -> bool:
    calib = choices.calib  # scales are plain maxima
    return calib is not None and (calib.percentile, calib.collect_method) == (1, "default")


@stage(version=1, when="headroom", only=plain)
def headroom(ctx: Context, headroom: ShareView, calib: SizeView, stats: CalibStats) -> CalibStats:
    from safetensors.torch import load_file, save_file

    extremes = load_file(stats.path / "extremes.safetensors")
    wider = {name: x * (1 + headroom.share / (calib.size + 1)) for name, x in extremes.items()}
    save_file(wider, ctx.out / "extremes.safetensors")
