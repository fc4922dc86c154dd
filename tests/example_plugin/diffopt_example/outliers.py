"""A kind of its own, made for its own sake: how far the widest channel of every quantizer's input stands out.

With calibration of a format. Of an outlier SmoothQuant's alpha, or leaving the layer out, makes the most.
"""

import json

from diffopt.artifact import Artifact, CalibStats
from diffopt.stage import Context, stage
from diffopt.view import Choices


class Outliers(Artifact):
    kind = "outliers"


def quantizes(choices: Choices) -> bool:
    return choices.format is not None


@stage(version=1, when="calib", asked=quantizes)
def outliers(ctx: Context, stats: CalibStats) -> Outliers:
    from safetensors.torch import load_file

    extremes = load_file(stats.path / "extremes.safetensors")
    found = {name: float(x.max() / x.median().clamp(min=1e-9)) for name, x in extremes.items()}
    (ctx.out / "outliers.json").write_text(json.dumps(found, indent=1))
