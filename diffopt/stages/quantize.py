"""quantize: put the backbone into the chosen format, calibrated on recorded extremes or by a search over recorded inputs."""

from typing import Annotated, Any

from diffopt import formats
from diffopt.artifact import CalibStats, Checkpoint, Pipeline, Recording
from diffopt.groups import FormatView, ScaleView
from diffopt.stage import Context, Under, stage
from diffopt.view import Choices


def observes(choices: Choices) -> bool:
    return choices.format is not None and formats.method(choices.format.name).observes


def searches(choices: Choices) -> bool:
    return choices.format is not None and formats.method(choices.format.name).search


@stage(version=2, when="format", probes=("numerics", "modelopt"))
def quantize(
    ctx: Context,
    format: FormatView,
    calib: ScaleView | None,
    pipeline: Pipeline,
    stats: Annotated[CalibStats | None, Under(observes)],
    recordings: Annotated[tuple[Recording, ...], Under(searches)],
) -> Checkpoint:
    from diffopt import checkpoint
    from diffopt.layers import expected_layers
    from diffopt.pipeline.open import family_of, open_backbone
    from diffopt.recording import count, replay
    from diffopt.search import search

    backbone, family = open_backbone(ctx, pipeline), family_of(pipeline)
    method = formats.method(format.name)
    pinned = pipeline.json("pipeline.json")
    kept = family.kept(pinned["blocks"], pinned["backbones"])
    convolutions = bool(method.convolution) and family.convolutions
    expected = expected_layers(backbone, [*kept, *format.exclude], convolutions)
    rules = method.rules(kept, format.exclude, format.quantize_mha, format.block_size, convolutions)
    algorithm = method.calibration(calib.alpha if calib else None, format.rank)
    head: dict[str, Any] = {
        "family": family.name,
        "format": method.name,
        "weight_bits": method.bits(format.block_size),
        "block_size": format.block_size,
        "rank": format.rank,
        "rules": rules,
        "algorithm": algorithm,
    }
    if method.search:
        paths = [r.path for r in recordings]
        with ctx.progress(count(paths) * method.passes) as tick:
            found = search(backbone, rules, algorithm, replay(paths, tick))
        checkpoint.check(backbone, expected, inputs=method.input is not None)
        checkpoint.save_found(ctx.out, head | {"layers": checkpoint.quantized_layers(backbone)}, found)
    else:
        extremes = _extremes(stats, calib)
        checkpoint.quantize(backbone, rules, algorithm, extremes)
        checkpoint.check(backbone, expected)
        checkpoint.save(ctx.out, head | {"layers": checkpoint.quantized_layers(backbone)}, backbone, extremes)


def _extremes(stats: CalibStats | None, calib: ScaleView | None) -> dict[str, Any]:
    """What was observed; the convolution inputs' as `calib.percentile` and `calib.collect_method` draw them from the steps."""
    from safetensors.torch import load_file

    from diffopt.step_extremes import reduce

    if stats is None or calib is None:
        return {}
    found = load_file(stats.path / "extremes.safetensors")
    if (stats.path / "steps.safetensors").is_file():
        for name, table in load_file(stats.path / "steps.safetensors").items():
            found[name] = reduce(table, calib.percentile, calib.collect_method).to(found[name].dtype)
    return found
