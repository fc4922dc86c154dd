"""quantize: put the backbone into the chosen format, calibrated on the recorded extremes."""

from typing import Literal

from diffopt import formats
from diffopt.artifact import CalibStats, Checkpoint, Pipeline
from diffopt.errors import GateError
from diffopt.groups import Calib, Format
from diffopt.stage import Context, stage
from diffopt.view import Choices, View


class FormatView(View, of=Format):
    name: Literal["int8_sq", "fp8", "nvfp4"]
    exclude: list[str]
    quantize_mha: bool

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        attention = choices.format is not None and formats.method(choices.format.name).attention
        return cls.drawn_from() - (frozenset() if attention else {"quantize_mha"})


class SmoothingView(View, of=Calib):
    alpha: float

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        smooths = choices.format is not None and formats.method(choices.format.name).algorithm == "smoothquant"
        return frozenset({"alpha"}) if smooths else frozenset()


@stage(version=1, when="format", probes=("numerics", "modelopt"))
def quantize(ctx: Context, format: FormatView, calib: SmoothingView, pipeline: Pipeline, stats: CalibStats) -> Checkpoint:
    from safetensors.torch import load_file

    from diffopt import checkpoint
    from diffopt.pipeline.open import family_of, open_backbone

    backbone, family = open_backbone(ctx, pipeline), family_of(pipeline)
    method = formats.method(format.name)
    kept = checkpoint.expected_layers(backbone, list(family.keep))
    expected = checkpoint.expected_layers(backbone, [*family.keep, *format.exclude])
    for pattern in format.exclude:
        if checkpoint.expected_layers(backbone, [*family.keep, pattern]) == kept:
            raise GateError(f"format.exclude: matches no layer (got {pattern!r}); use a module's name, e.g. {kept[0]!r}")
    if not expected:
        raise GateError(f"format.exclude: leaves no layer to quantize (got {format.exclude}); drop some of it")
    rules = method.rules(list(family.keep), format.exclude, format.quantize_mha)
    algorithm = method.calibration(calib.alpha)
    extremes = load_file(stats.path / "extremes.safetensors")
    checkpoint.quantize(backbone, rules, algorithm, extremes)
    checkpoint.check(backbone, expected)
    head = {
        "family": family.name,
        "format": method.name,
        "weight_bits": method.weight_bits,
        "rules": rules,
        "algorithm": algorithm,
        "layers": checkpoint.quantized_layers(backbone),
    }
    checkpoint.save(ctx.out, head, backbone, extremes)
