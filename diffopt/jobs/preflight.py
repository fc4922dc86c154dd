"""What can be refused once the model's configs are known, before anything computes: one line each."""

import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from math import gcd, prod
from shutil import disk_usage

from diffopt import formats, models
from diffopt.artifact import Pipeline
from diffopt.caches import Settings
from diffopt.caches.policy import block_names
from diffopt.errors import PlanError
from diffopt.files.layers import Layer, read_layers
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.data import STEPS, Data
from diffopt.groups.model import BYTES
from diffopt.jobs import schedule
from diffopt.machine import environment
from diffopt.models.parts import Parts
from diffopt.quantization.layers import without
from diffopt.runtimes.room import estimate
from diffopt.stage import Context
from diffopt.text import size
from diffopt.training.processes import arranged
from diffopt.view import Choices

FLOAT16 = 65504.0
"""Its largest number."""
HEAD_STEP = 16  # channels; FP8 attention kernels take heads of multiples of it


def check(ctx: Context, choices: Choices, pipeline: Pipeline) -> None:
    """Raises PlanError with every reason why this model cannot do what is asked.

    `ctx` is of the run; its `out` lies on the store's disk.
    """
    pinned = PipelineFile.read(pipeline.path)
    layers = read_layers(pipeline.path)
    kept = models.family(pinned.family).kept(pinned.blocks, pinned.backbones)
    reasons = [
        *_size(choices, pinned.largest, pinned.size_step),
        *_format(choices, layers, kept),
        *_cache(ctx, choices, pinned),
        *_range(ctx, choices, pinned, [x.name for x in without(layers, kept)]),
        *_memory(pinned),
        *_parity(choices, pinned, without(layers, kept)),
        *_bench(choices, pinned),
        *_train(choices, pipeline),
        *_disk(ctx, choices, pinned),
    ]
    if reasons:
        raise PlanError("\n".join(reasons))
    schedule.told(choices, ctx.locate(pinned.source), pinned.backbones)  # of a model that planning had not here
    _steps_and_prompts(ctx, choices, pipeline)


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
    if chosen is None:
        return
    method = formats.method(chosen.name)
    convolutions = any(m.convolution for m in formats.methods(chosen))
    there = [x for x in without(layers, kept) if x.kind == "linear" or (x.kind == "convolution" and convolutions)]
    left = without(there, chosen.exclude)
    for glob in chosen.exclude:
        if len(without(there, [glob])) == len(there):
            example = there[0].name if there else "transformer_blocks.0"
            yield f"format.exclude: matches no layer that is quantized (got {glob!r}); use a module's name, e.g. {example!r}"
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


def _cache(ctx: Context, choices: Choices, pinned: PipelineFile) -> Iterator[str]:
    """The chosen cache on the blocks that the backbone has."""
    if choices.cache is None:
        return
    assert isinstance(choices.cache, Settings)
    family = models.family(pinned.family)
    path = ctx.locate(pinned.source) / pinned.backbones[0] / "config.json"
    middle = "down_blocks" in family.blocks and json.loads(path.read_text()).get("mid_block_type", True) is not None
    if mismatch := choices.cache.filled(family).mismatch(block_names(pinned.blocks, middle)):
        yield f"cache.{mismatch}"


def _range(ctx: Context, choices: Choices, pinned: PipelineFile, layers: Sequence[str]) -> Iterator[str]:
    """Weights that FP16 cannot hold, where the model is opened or exported in it: they would be infinite."""
    exported = choices.export.high_precision_dtype if choices.export and choices.export.kind == "graph" else None
    given = {"model.dtype": pinned.dtype, "export.high_precision_dtype": exported}
    field = next((name for name, dtype in given.items() if dtype == "float16"), None)
    if field is None or pinned.weights == "random":
        return
    from diffopt.quantization.narrow import beyond

    parts = Parts(ctx.locate(pinned.source), models.family(pinned.family), pinned.variant)
    excluded = choices.format.exclude if choices.format else []
    for backbone in pinned.backbones:
        prefix = f"{backbone}." if len(pinned.backbones) > 1 else ""
        found = [(prefix + name, peak) for name, peak in beyond(parts.weights(backbone), FLOAT16)]
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
    from diffopt.pipeline.placement import ROOM, SPARE

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


def _train(choices: Choices, pipeline: Pipeline) -> Iterator[str]:
    """What training takes beside the model's own weights, and what is to be trained or compared by name."""
    train, gpus, pinned = choices.train, environment.gpus(), PipelineFile.read(pipeline.path)
    if train is None:
        return
    try:
        processes, need = arranged(train, pipeline, gpus)
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
        yield "train.precision: float16 is for GPUs, where its gradients are scaled (got float16); set bfloat16 or float32"
    there = [f"{group}.{i}" for group, many in pinned.blocks.items() for i in range(many)]
    for glob in train.distillation.blocks if train.distillation else []:
        if not any(fnmatch(name, glob) for name in there):
            yield f"train.distillation.blocks: matches no block (got {glob!r}); use a block's name, e.g. {there[0]!r}"


def _disk(ctx: Context, choices: Choices, pinned: PipelineFile) -> Iterator[str]:
    """The graph or the packed weights that are to be written, every layer taken for quantized."""
    if choices.export is None:
        return
    plain = BYTES[choices.export.high_precision_dtype or pinned.dtype]
    packed = [m.bits(choices.format.block_size) for m in formats.methods(choices.format)] if choices.format else []
    bits = min(packed, default=8 * plain)
    need, free = int(pinned.parameters * bits / 8), disk_usage(ctx.out).free
    what = "graph takes" if choices.export.kind == "graph" else "packed weights take"
    if need > free:
        yield (
            f"export: the {what} at least {size(need)}, but the store's disk has {size(free)} left "
            f"(got {str(ctx.out.parent)!r}); free some by `diffopt store gc`, or set DIFFOPT_STORE to another disk"
        )


def _steps_and_prompts(ctx: Context, choices: Choices, pipeline: Pipeline) -> None:
    """The scheduler with the numbers of steps, and the tokenizers with the prompts."""
    from diffopt.pipeline.open import open_tokenizers
    from diffopt.pipeline.scheduler import check_steps, scheduler
    from diffopt.pipeline.texts import check_length

    pinned = PipelineFile.read(pipeline.path)
    own = scheduler(ctx.locate(pinned.source), pinned.scheduler)
    sets = []
    if choices.calib:
        check_steps(own, choices.calib.n_steps, "calib.n_steps")
        sets.append(("calib.prompts", choices.calib.prompts.prompts[: choices.calib.size]))
    if choices.eval:
        check_steps(own, choices.eval.steps, "eval.steps")
        sets.append(("eval.prompts", choices.eval.prompts.prompts[: choices.eval.size]))
    if choices.train:
        data = choices.train.data
        if data.synthetic:
            check_steps(own, data.steps or STEPS, "train.data.steps")
        where = "train.data.prompts" if data.synthetic else "train.data.source"
        sets.append((where, tuple(dict.fromkeys(_trained(ctx, choices, data)))))
    assert choices.model is not None
    texts = sets and pinned.weights != "random" and not models.family(pinned.family).animates
    if texts and choices.model.long_prompts == "refuse":
        pipe = open_tokenizers(ctx, pipeline)
        for where, prompts in sets:
            check_length(pipe, prompts, choices.model, where)


def _trained(ctx: Context, choices: Choices, data: Data) -> Sequence[str]:
    """The prompts that are trained on. Reads no picture of one's own, only which there are and their captions."""
    from diffopt.data.imagefolder import ImageFolder

    if data.source is None:
        return data.item_prompts(choices).prompts
    return ImageFolder(ctx.locate(ctx.digest(data.source)), data.source.name, data.size, data.caption).captions
