"""sense: one pass of the full-precision model, every layer of it tried in several formats beside."""

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from diffopt import formats
from diffopt.artifact import CalibStats, Embeddings, HessianChunk, HistogramChunk, Pipeline, Sensitivity
from diffopt.data.prompts import PromptSet
from diffopt.files.layers import Layer, read_layers
from diffopt.files.pipeline import PipelineFile
from diffopt.files.sensitivity import SensedLayer, SensitivityFile
from diffopt.formats.method import COUNTED, PERCENTILE
from diffopt.groups import CallView, ChunkView
from diffopt.groups.sense import SensedPromptsView, SenseView, Trial, trials
from diffopt.groups.sense import tried as options
from diffopt.stage import Context, Under, stage
from diffopt.view import Choices

log = logging.getLogger("diffopt")


def tried(choices: Choices) -> list[Trial]:
    return trials(choices.sense.formats, options(choices)) if choices.sense else []


def correlates(choices: Choices) -> bool:
    return any(t.value == "local_hessian" for t in tried(choices))


def counts(choices: Choices) -> bool:
    return any(t.field == "inputs" and t.value in COUNTED for t in tried(choices))


@stage(version=1, when="sense", probes=("numerics", "modelopt"))
def sense(
    ctx: Context,
    model: CallView,
    sense: SenseView,
    calib: SensedPromptsView,
    pipeline: Pipeline,
    stats: CalibStats,
    texts: tuple[Embeddings, ...],
    seed: int,
    hessians: Annotated[tuple[HessianChunk, ...], Under(correlates, silent=True)] = (),
    histograms: Annotated[tuple[HistogramChunk, ...], Under(counts, silent=True)] = (),
) -> Sensitivity:
    from diffopt.pipeline.calibration import Calibration
    from diffopt.quantization.companions import means, sizes
    from diffopt.quantization.layer_errors import variants, watched
    from diffopt.quantization.layers import taken
    from diffopt.quantization.step_extremes import extremes_of
    from diffopt.quantization.zeros import zero_inputs, zero_weights

    run, pinned = Calibration(ctx, pipeline), PipelineFile.read(pipeline.path)
    kept = run.family.kept(pinned.blocks, pinned.backbones)
    known = read_layers(pipeline.path)
    methods = [formats.method(n) for n in sense.formats]
    there = {m.name: taken(known, kept, run.family.convolutions and bool(m.convolution)) for m in methods}
    extremes = extremes_of(stats.path, calib.percentile, calib.collect_method)
    names = {x.name for layers in there.values() for x in layers}
    if idle := {*zero_weights(run.backbone, names), *zero_inputs(names, extremes)}:  # in no format they are off by anything
        log.info("sense: left out since all their weights or inputs are zero: %s", ", ".join(sorted(idle)))
        there = {name: [x for x in layers if x.name not in idle] for name, layers in there.items()}
    modules = {x.name: run.backbone.get_submodule(x.name) for layers in there.values() for x in layers}
    made = {m.name: variants({x.name: modules[x.name] for x in there[m.name]}, m, calib.alpha, extremes) for m in methods}
    inner, counted = means(hessians), sizes(histograms)
    for trial in trials(sense.formats, sense.options):
        own = {x.name: modules[x.name] for x in there[trial.format]}
        made[trial.name] = _variants(trial, own, calib.alpha, extremes, inner, counted)
    chunks = _chunks(calib)
    with watched(modules, made) as errors, ctx.progress(sum(c.calls for c in chunks)) as tick:

        def stepped() -> None:
            errors.end()
            tick()

        for embedded, chunk in zip(texts, chunks, strict=False):
            run(embedded, chunk, model, seed, stepped)
    table = errors.table(sum(c.batches for c in chunks))
    steps, prompts = len(next(iter(table.values()))["energy"]), len(calib.prompts)
    products = {name: many / (prompts * steps) for name, many in errors.products.items()}
    layers = _sensed([x for x in known if x.name in table], modules, table, products)
    alpha = calib.alpha if any(m.algorithm == "smoothquant" for m in methods) else None
    SensitivityFile(sense.formats, prompts, steps, alpha, layers, [t.name for t in trials(sense.formats, sense.options)]).write(
        ctx.out
    )


def _sensed(
    layers: Sequence[Layer], modules: Mapping[str, Any], table: Mapping[str, Any], products: Mapping[str, float]
) -> tuple[SensedLayer, ...]:
    """`products` are those of a layer in one step of one prompt."""
    return tuple(
        SensedLayer(
            name=x.name,
            kind=x.kind,
            weights=modules[x.name].weight.numel(),
            products=products[x.name],
            energy=table[x.name].pop("energy"),
            error=table[x.name],
        )
        for x in layers
    )


def _variants(
    trial: Trial,
    own: Mapping[str, Any],
    alpha: float | None,
    extremes: Mapping[str, Any],
    products: Mapping[str, Any],
    counted: dict[str, Any],
) -> dict[str, Any]:
    """Of an option of a format the layers `own` with it, a percentile at its default."""
    from diffopt.quantization.input_ranges import ranged
    from diffopt.quantization.layer_errors import variants
    from diffopt.quantization.weight_scales import Search, ragged

    method = formats.method(trial.format)
    if trial.field == "weights":
        whole = {n: m for n, m in own.items() if not ragged(m.weight)}
        return variants(whole, method, alpha, extremes, Search(trial.value, products))
    seen = ranged(extremes, counted, own, trial.value, method, PERCENTILE) if trial.value in COUNTED else extremes
    return variants(own, method.of(trial.value), alpha, seen)


def _chunks(calib: SensedPromptsView) -> list[ChunkView]:
    """The prompts as the calibration's chunks have them."""
    found, many = [], len(calib.prompts)
    for start in range(0, many, calib.chunk):
        part: PromptSet = calib.prompts.part(start, min(start + calib.chunk, many))
        found.append(ChunkView(prompts=part, start=start, batch_size=calib.batch_size, n_steps=calib.n_steps))
    return found
