"""quantize: put the backbone into the chosen format, calibrated on recorded extremes or by a search over recorded inputs."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

from diffopt import formats
from diffopt.artifact import CalibStats, Checkpoint, HessianChunk, HistogramChunk, Mix, Pipeline, Recording
from diffopt.files.checkpoint import CheckpointFile
from diffopt.formats.method import COUNTED
from diffopt.groups import FormatView, ScaleView
from diffopt.groups.format import inputs, rounds, weights
from diffopt.stage import Context, Under, stage
from diffopt.view import Choices

if TYPE_CHECKING:
    import torch

    from diffopt.quantization.scheme import Scheme
    from diffopt.quantization.weight_scales import Found, Search


def observes(choices: Choices) -> bool:
    return choices.format is not None and any(m.observes for m in formats.methods(choices.format))


def searches(choices: Choices) -> bool:
    """Whether the inputs themselves are needed."""
    if choices.format is None:
        return False
    return rounds(choices.format) or any(m.records for m in formats.methods(choices.format))


def correlates(choices: Choices) -> bool:
    return choices.format is not None and weights(choices.format) == "local_hessian"


def counts(choices: Choices) -> bool:
    return choices.format is not None and inputs(choices.format) in COUNTED


def mixes(choices: Choices) -> bool:
    return choices.format is not None and choices.format.name == "auto"


def calibrates(choices: Choices) -> bool:
    return choices.model is None or choices.model.quantized is None


def _scaled(name: str) -> bool:
    """Whether a format takes scales of weights, and does not find them as it rounds."""
    return formats.method(name).algorithm is not None


@stage(version=2, when="format", only=calibrates, probes=("numerics", "modelopt"))
def quantize(
    ctx: Context,
    format: FormatView,
    calib: ScaleView | None,
    pipeline: Pipeline,
    stats: Annotated[CalibStats | None, Under(observes)],
    recordings: Annotated[tuple[Recording, ...], Under(searches)],
    mix: Annotated[Mix | None, Under(mixes, silent=True)] = None,
    hessians: Annotated[tuple[HessianChunk, ...], Under(correlates, silent=True)] = (),
    histograms: Annotated[tuple[HistogramChunk, ...], Under(counts, silent=True)] = (),
) -> Checkpoint:
    from diffopt.machine.memory import release
    from diffopt.pipeline.open import empty_backbone, family_of, open_backbone
    from diffopt.quantization import checkpoint, weight_scales, zeros
    from diffopt.quantization.companions import means, sizes
    from diffopt.quantization.input_ranges import ranged
    from diffopt.quantization.scales import Plain, scales
    from diffopt.quantization.scheme import mixed, uniform
    from diffopt.quantization.step_extremes import extremes_of

    family, method = family_of(pipeline), formats.method(format.name).of(format.inputs, format.awq)
    if method.records:
        ctx.held.drop()  # a search changes the weights, so it has a backbone of its own
        release()
        backbone = open_backbone(ctx, pipeline)
    else:
        plain = ctx.held.get(
            pipeline.fingerprint, lambda: Plain(open_backbone(ctx, pipeline), lambda: empty_backbone(ctx, pipeline))
        )
        backbone = plain.backbone
    alpha = calib.alpha if calib else None
    scheme = mixed(mix, alpha) if mix else uniform(backbone, pipeline, format, alpha)
    head = _head(family.name, method.name, format, scheme)
    extremes = extremes_of(stats.path, calib.percentile, calib.collect_method) if stats and calib else {}
    zeros.check(backbone, [n for n in scheme.layers if _scaled(scheme.mix[n] if scheme.mix else method.name)], extremes)
    if histograms:
        extremes = ranged(extremes, sizes(histograms), scheme.layers, format.inputs, method, format.input_percentile)
    search = weight_scales.Search(format.weights, means(hessians), keep=format.rounding == "gptq")
    if method.records:
        found = _found(ctx, backbone, scheme, format, search, recordings)
        checkpoint.save_found(ctx.out, head(layers=tuple(checkpoint.quantized_layers(backbone))), found)
    else:
        known = plain.switched_on(scheme.rules)
        state = scales(backbone, known, extremes, alpha, format.share_scales)
        checkpoint.check_scales(known, state, scheme.layers, inputs=bool(mix) or method.input is not None)
        blocks = [n for n in scheme.layers if formats.method(scheme.mix[n] if scheme.mix else method.name).weights]
        searched = weight_scales.of_layers(backbone, blocks, state, search)
        state |= searched
        if format.rounding != "nearest":
            ctx.held.drop()  # which would lie beside the one that is in the format
            del plain, backbone
            release()
            backbone = open_backbone(ctx, pipeline)
            checkpoint.quantize(backbone, scheme.rules, scheme.algorithm, extremes, format.share_scales)
            state |= _rounded(ctx, backbone, searched, format, recordings)
        checkpoint.save(ctx.out, head(layers=tuple(q.layer for q in known if q.weight)), known, extremes, state)


def _found(
    ctx: Context,
    backbone: "torch.nn.Module",
    scheme: "Scheme",
    format: FormatView,
    search: "Search",
    recordings: tuple[Recording, ...],
) -> "Found":
    """What a format's own search finds, and what is sought of its weights then; in place."""
    from diffopt.quantization import checkpoint, weight_scales
    from diffopt.quantization.awq_svdquant import calibrate
    from diffopt.quantization.low_rank import Alternation
    from diffopt.quantization.recorded_calls import count, replay

    method, paths = formats.method(format.name).of(format.inputs, format.awq), [r.path for r in recordings]
    alternation = Alternation(format.rank_iterations, search) if format.rank_iterations else None
    settled = format.share_scales, format.round_scales, alternation
    with ctx.progress(count(paths) * method.passes) as tick:
        found = calibrate(backbone, scheme.rules, scheme.algorithm, replay(paths, tick), *settled)
    checkpoint.check(backbone, scheme.layers, inputs=method.input is not None)
    scales = weight_scales.of_model(backbone, search)
    return found | scales | _rounded(ctx, backbone, scales, format, recordings)


def _rounded(
    ctx: Context, model: "torch.nn.Module", scales: "Found", format: FormatView, recordings: tuple[Recording, ...]
) -> "Found":
    """The weights of a quantized model where they are not rounded to the nearest, by these scales of its blocks."""
    if format.rounding == "nearest":
        return {}
    from diffopt.quantization.gptq import Gptq
    from diffopt.quantization.recorded_calls import count, replay
    from diffopt.quantization.weight_scales import put

    put(model, scales, format.weights)
    gptq, paths = Gptq(model, format.damping), [r.path for r in recordings]
    with ctx.progress(count(paths) * gptq.passes) as tick:
        return gptq(replay(paths, tick))


def _head(family: str, name: str, format: FormatView, scheme: "Scheme") -> "partial[CheckpointFile]":
    """What checkpoint.json says, but for the layers."""
    return partial(
        CheckpointFile,
        family=family,
        format=name,
        weight_bits=scheme.weight_bits,
        block_size=format.block_size,
        rank=format.rank,
        rank_iterations=format.rank_iterations,
        weights=format.weights,
        rounding=format.rounding,
        damping=format.damping if format.rounding == "gptq" else None,
        inputs=format.inputs,
        input_percentile=format.input_percentile if format.inputs == "percentile" else None,
        share_scales=format.share_scales,
        round_scales=format.round_scales,
        rules=scheme.rules,
        algorithm=scheme.algorithm,
        mix=scheme.mix,
    )
