"""What can be refused by what is known of a model, in the plan or once it is pinned, before anything computes: a line each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from math import gcd, prod
from pathlib import Path
from shutil import disk_usage

from pydantic import ValidationError

from diffopt import formats, models
from diffopt.artifact import Pipeline
from diffopt.caches import Settings
from diffopt.caches.policy import block_names
from diffopt.errors import PlanError
from diffopt.files.found import Found
from diffopt.files.layers import Layer, read_layers
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.export import LAYOUTS
from diffopt.groups.model import BYTES
from diffopt.jobs import asked, checks, export_checks, schedule
from diffopt.jobs.component_checks import components
from diffopt.machine import environment
from diffopt.machine.memory import ROOM, SPARE
from diffopt.models.parts import Parts
from diffopt.pipeline.foreign import config_of
from diffopt.pipeline.outline import outline
from diffopt.quantization.layers import without
from diffopt.runtimes.room import estimate
from diffopt.stage import Context
from diffopt.store.source import Source
from diffopt.store.tensor_file import SUFFIX
from diffopt.text import size
from diffopt.training.processes import arranged
from diffopt.view import Choices

FLOAT16 = 65504.0
"""Its largest number."""
HEAD_STEP = 16  # channels; FP8 attention kernels take heads of multiples of it


@dataclass(frozen=True)
class Known:
    """What is known of a model."""

    directory: Path
    """Its files."""
    pinned: PipelineFile
    """Its `parameters` are 0 where they are not known."""
    layers: Sequence[Layer]
    """Without attention, or none at all, where they are not known."""
    store: Path
    """A directory on the store's disk."""


def check(ctx: Context, choices: Choices, pipeline: Pipeline) -> None:
    """Raises PlanError with every reason why this model cannot do what is asked, once it is pinned.

    `ctx` is of the run; its `out` lies on the store's disk.
    """
    pinned = PipelineFile.read(pipeline.path)
    if pinned.found and choices.model and choices.model.found is None:  # what planning could not know
        choices = _told(choices, pinned.found)
    known = Known(ctx.locate(pinned.source), pinned, read_layers(pipeline.path), ctx.out)
    if reasons := [*_refused(choices, known), *_range(choices, known)]:
        raise PlanError("\n".join(reasons))
    schedule.told(choices, known.directory, pinned.backbones)  # of a model that planning had not here
    if reasons := [
        *asked.steps(choices, known.directory),
        *asked.prompts(choices, known.directory, lambda s: ctx.locate(ctx.digest(s))),
    ]:
        raise PlanError("\n".join(reasons))


def _told(choices: Choices, found: Found) -> Choices:
    """The choices with what was found of their model. Raises PlanError with every reason why they do not fit it."""
    model = choices.model
    assert model is not None
    try:
        told = model.told(found)
    except ValidationError as e:
        lines = [str(x["msg"]).removeprefix("Value error, ") for x in e.errors()]
        raise PlanError("\n".join(f"model.{line}" for line in lines)) from None
    made = replace(choices, model=told)
    checks.check(made, environment.Environment())
    return made


def foresee(choices: Choices, entry: Pipeline | None, store: Path, local: Callable[[Source], Path | None]) -> list[str]:
    """The same reasons before anything is made, as far as they are known: of a model that was pinned before (`entry`), or by
    its configs. `local` tells where a source's files are already; nothing is asked of a network.
    """
    model = choices.model
    assert model is not None
    directory = local(model.origin)
    if directory is None or not (directory / "model_index.json").is_file():
        return []
    if entry:
        pinned = PipelineFile.read(entry.path)
        known: Known | None = Known(directory, pinned, read_layers(entry.path), store)
        if pinned.found and model.found is None:
            try:
                choices = _told(choices, pinned.found)
            except PlanError as e:
                return str(e).splitlines()
    else:
        found = outline(directory, model)
        known = Known(directory, found.pinned, found.layers, store) if found else None
    return [
        *(_refused(choices, known) if known else ()),
        *asked.steps(choices, directory),
        *asked.prompts(choices, directory, local),
    ]


def _refused(choices: Choices, known: Known) -> Iterator[str]:
    pinned, layers = known.pinned, known.layers
    kept = models.of(pinned).kept(pinned.blocks, pinned.backbones)
    yield from _size(choices, pinned.largest, pinned.size_step)
    yield from _format(choices, layers, kept)
    yield from _cache(choices, known)
    yield from _memory(pinned)
    yield from _parity(choices, pinned, without(layers, kept))
    yield from _bench(choices, pinned)
    yield from _train(choices, known)
    yield from _adapters(choices, without(layers, kept))
    yield from components(choices, known.directory)
    yield from _disk(choices, known)


def _size(choices: Choices, largest: int | None, step: int) -> Iterator[str]:
    assert choices.model is not None
    for name in ("height", "width"):
        if largest is not None and (value := getattr(choices.model, name)) > largest:
            yield f"model.{name}: the model's positions end at {largest} pixels (got {value}); lower it"
        if (value := getattr(choices.model, name)) % step:
            yield f"model.{name}: is not a multiple of this model's {step} pixels (got {value}); round it"


def _format(choices: Choices, layers: Sequence[Layer], kept: list[str]) -> Iterator[str]:
    """The chosen format on the layers that it would quantize."""
    chosen = choices.format
    if chosen is None or not layers or (choices.model and choices.model.quantized):
        return
    method = formats.method(chosen.name)
    convolutions = any(m.convolution for m in formats.methods(chosen))
    there = [x for x in without(layers, kept) if x.kind == "linear" or (x.kind == "convolution" and convolutions)]
    left = without(there, chosen.exclude)
    for glob in chosen.exclude:
        if len(without(there, [glob])) == len(there):
            example = there[0].name if there else "transformer_blocks.0"
            yield f"format.exclude: matches no layer that is quantized (got {glob!r}); use a module's name, e.g. {example!r}"
    convolved = [x.name for x in left if x.kind == "convolution"]
    if convolved and choices.export and choices.export.kind in LAYOUTS:
        globs = sorted({f"*{name.rpartition('.')[2]}" for name in convolved})
        yield (
            f"export: {convolved[0]} is a convolution, which the layout has no place for (got {choices.export.kind}); "
            f"set format.exclude={[*chosen.exclude, *globs]}"
        )
    yield from export_checks.lengths(choices, left)
    if not left:
        yield f"format.exclude: leaves no layer to quantize (got {chosen.exclude}); drop some of it"
    if method.block_size:
        block = chosen.block_size or method.block_size
        broken = [x for x in left if x.shape[1] % block]
        for layer in broken[:1]:
            common = gcd(*(x.shape[1] for x in left))
            fits = common & -common  # its largest power of two
            advice = f"set format.block_size={min(fits, method.block_size)}" if fits >= 16 else "exclude it by format.exclude"
            yield (
                f"format.block_size: does not divide the {layer.shape[1]} input features of {layer.name} "
                f"(got {block}; {len(broken)} such layers); {advice}, or choose another format"
            )
    if chosen.quantize_mha and method.attention:
        heads = [x for x in without(layers, [*kept, *chosen.exclude]) if x.kind == "attention" and x.shape[1] % HEAD_STEP]
        for layer in heads[:1]:
            yield (
                f"format.quantize_mha: FP8 attention takes heads of a multiple of {HEAD_STEP} channels, but {layer.name} has "
                f"{layer.shape[1]} (got true); drop it, or add the layer to format.exclude"
            )


def _cache(choices: Choices, known: Known) -> Iterator[str]:
    """The chosen cache on the blocks that the backbone has."""
    if choices.cache is None:
        return
    assert isinstance(choices.cache, Settings)
    pinned = known.pinned
    family = models.of(pinned)
    path = known.directory / pinned.backbones[0] / "config.json"
    middle = "down_blocks" in family.blocks and config_of(path).get("mid_block_type", True) is not None
    if mismatch := choices.cache.filled(family).mismatch(block_names(pinned.blocks, middle)):
        yield f"cache.{mismatch}"


def _range(choices: Choices, known: Known) -> Iterator[str]:
    """Weights that FP16 cannot hold, where the model is opened or exported in it: they would be infinite. Reads them all."""
    pinned = known.pinned
    exported = choices.export.high_precision_dtype if choices.export and choices.export.kind == "graph" else None
    given = {"model.dtype": pinned.dtype, "export.high_precision_dtype": exported}
    field = next((name for name, dtype in given.items() if dtype == "float16"), None)
    if field is None or pinned.weights == "random":
        return
    from diffopt.quantization.narrow import beyond

    family = models.of(pinned)
    parts = Parts(known.directory, family, pinned.variant)
    layers = {x.name for x in without(known.layers, family.kept(pinned.blocks, pinned.backbones))}
    excluded = choices.format.exclude if choices.format else []
    for backbone in pinned.backbones:
        prefix = f"{backbone}." if len(pinned.backbones) > 1 else ""
        original = parts.original(backbone)
        files = parts.weights(backbone) if original is None else [original] if original.suffix == SUFFIX else []
        found = [(prefix + name, peak) for name, peak in beyond(files, FLOAT16)]
        for name, peak in found[:1]:
            layer, _, kind = name.rpartition(".")
            scaled = choices.format and kind == "weight" and layer in layers and not any(fnmatch(layer, g) for g in excluded)
            what = f"{layer}.weight_quantizer has an amax of" if scaled else f"{name} has values up to"
            more = f"; {len(found)} such weights" if found[1:] else ""
            yield (
                f"{field}: {what} {peak:.6g}, which float16 cannot hold (got float16, up to {FLOAT16:.0f}{more}); "
                f"set {field}=bfloat16 or float32"
            )


def _memory(pinned: PipelineFile) -> Iterator[str]:
    """The weights of the backbones, which are in memory once; what does not fit the GPU lies in RAM."""
    need, ram = pinned.parameters * BYTES[pinned.dtype], environment.ram()
    have = ram + max((g["memory"] for g in environment.gpus()), default=0)
    if need > have:
        yield (
            f"model: its backbone weighs {size(need)} in {pinned.dtype}, but RAM and GPU have {size(have)} together "
            f"(got {pinned.parameters / 1e9:.1f} billion parameters); use a larger machine, or a 16-bit model.dtype"
        )


def _parity(choices: Choices, pinned: PipelineFile, layers: Sequence[Layer]) -> Iterator[str]:
    """The simulated backbone beside the one with kernels, whose linear layers take a byte a weight."""
    gpus = environment.gpus()
    if not (choices.eval and choices.eval.compares_kernels and choices.format and gpus):
        return
    plain = BYTES[pinned.dtype]
    packed = sum(prod(x.shape) for x in without(layers, choices.format.exclude) if x.kind == "linear")
    simulated, native = pinned.parameters * plain, (pinned.parameters - packed) * plain + packed
    need, have = int(simulated * ROOM) + SPARE + native, gpus[0]["memory"]
    if need > have:
        yield (
            f"eval.parity: holds the simulated backbone of {size(simulated)} beside the native one of {size(native)} and takes "
            f"about {size(need)}, but the GPU has {size(have)} (got true); set eval.parity=false"
        )


def _bench(choices: Choices, pinned: PipelineFile) -> Iterator[str]:
    """Weights that are on the GPU at once: what is moved there as it is needed has no speed of its own."""
    bench, gpus = choices.eval.bench if choices.eval else [], environment.gpus()
    if not bench or not gpus:
        return
    need = estimate(bench, pinned, choices.format.name if choices.format else None)
    if need > gpus[0]["memory"]:
        yield (
            f"eval.bench: the backbones' weights take about {size(need)} at once, but the GPU has {size(gpus[0]['memory'])} "
            f"(got {', '.join(bench)}); name fewer, or use a larger GPU"
        )


def _train(choices: Choices, known: Known) -> Iterator[str]:
    """What training takes beside the model's own weights, and what is to be trained or compared by name."""
    train, gpus, pinned = choices.train, environment.gpus(), known.pinned
    if train is None:
        return
    try:
        processes, need = arranged(train, pinned, known.layers, gpus)
    except PlanError as e:
        yield str(e)
        return
    have = min((g["memory"] for g in gpus[: processes.each]), default=environment.ram() // processes.each)
    if need.total > have:
        where = ("a GPU" if processes.each > 1 else "the GPU") if gpus else "RAM"
        shared = f" in each of {processes.total} processes" if processes.total > 1 else ""
        yield (
            f"train: takes about {size(need.total)}{shared} ({need}), but {where} has {size(have)} "
            f"(got {pinned.parameters / 1e9:.2f} billion parameters); set train.optimizer=adamw8bit, train.weights=null, "
            "train.lora, or train.distillation.teacher.offload=true, train on more GPUs by train.parallel=fsdp, or use a "
            "larger machine"
        )
    loaded = pinned.parameters * BYTES[train.weights or pinned.dtype] * processes.each
    if processes.how == "fsdp" and loaded > environment.ram():
        yield (
            f"train.processes: each reads the model into RAM before it is cut, {size(loaded)} together, but RAM has "
            f"{size(environment.ram())} (got {processes.each}); lower it, or use more train.machines"
        )
    if need.offloaded > environment.ram():
        yield (
            f"train.distillation.teacher.offload: the teacher weighs {size(need.offloaded)}, but RAM has "
            f"{size(environment.ram())} (got true); set train.distillation.teacher.storage=float8_e4m3fn"
        )
    if train.precision == "float16" and not gpus:
        yield "train.precision: float16 is for GPUs, where its gradients are scaled (got float16); set train.precision=bfloat16"
    there = [f"{group}.{i}" for group, many in pinned.blocks.items() for i in range(many)]
    for glob in train.distillation.blocks if train.distillation else []:
        if not any(fnmatch(name, glob) for name in there):
            yield f"train.distillation.blocks: matches no block (got {glob!r}); use a block's name, e.g. {there[0]!r}"


def _adapters(choices: Choices, layers: Sequence[Layer]) -> Iterator[str]:
    """The layers that LoRA is to train, by name, of those that are quantized."""
    if choices.train is None or choices.train.lora is None or not layers:
        return
    left = without(layers, choices.format.exclude if choices.format else ())
    linear = [x.name for x in left if x.kind == "linear"]
    for glob in choices.train.lora.targets:
        if not any(fnmatch(name, glob) for name in linear):
            example = linear[0] if linear else "transformer_blocks.0.attn.to_q"
            yield (
                f"train.lora.targets: matches no quantized linear layer (got {glob!r}); use a layer's name, e.g. {example!r}"
            )


def _disk(choices: Choices, known: Known) -> Iterator[str]:
    """The graph and its plan, or the packed weights, that are to be written, every layer taken for quantized."""
    if choices.export is None:
        return
    pinned = known.pinned
    plain = BYTES[choices.export.high_precision_dtype or pinned.dtype]
    packed = [m.bits(choices.format.block_size) for m in formats.methods(choices.format)] if choices.format else []
    bits = min(packed, default=8 * plain)
    engine = choices.export.engine
    need, free = int(pinned.parameters * bits / 8) * (2 if engine else 1), disk_usage(known.store).free
    graph = "graph and its plan take" if engine else "graph takes"
    what = graph if choices.export.kind == "graph" else "packed weights take"
    if need > free:
        yield (
            f"export: the {what} at least {size(need)}, but the store's disk has {size(free)} left "
            f"(got {str(known.store)!r}); free some by `diffopt store gc`, or set DIFFOPT_STORE to another disk"
        )
