"""What can be refused once the model's configs are known, before anything computes: one line each."""

from collections.abc import Iterator
from math import gcd
from shutil import disk_usage
from typing import Any

from diffopt import environment, formats, models
from diffopt.artifact import Pipeline
from diffopt.errors import PlanError
from diffopt.figure import size
from diffopt.layers import Layer, without
from diffopt.run import BYTES
from diffopt.stage import Context
from diffopt.view import Choices

HEAD_STEP = 16  # channels; FP8 attention kernels take heads of multiples of it


def check(ctx: Context, choices: Choices, pipeline: Pipeline) -> None:
    """Raises PlanError with every reason why this model cannot do what is asked.

    `ctx` is of the run; its `out` lies on the store's disk.
    """
    pinned = pipeline.json("pipeline.json")
    layers = [Layer(**{**row, "shape": tuple(row["shape"])}) for row in pipeline.json("layers.json")]
    kept = models.family(pinned["family"]).kept(pinned["blocks"], pinned["backbones"])
    reasons = [
        *_size(choices, pinned["largest"], pinned["size_step"]),
        *_format(choices, layers, kept),
        *_memory(pinned),
        *_disk(ctx, choices, pinned),
    ]
    if reasons:
        raise PlanError("\n".join(reasons))
    _steps_and_prompts(ctx, choices, pipeline)


def _size(choices: Choices, largest: int | None, step: int) -> Iterator[str]:
    assert choices.model is not None
    for name in ("height", "width"):
        if largest is not None and (value := getattr(choices.model, name)) > largest:
            yield f"model.{name}: the model's positions end at {largest} pixels (got {value}); lower it"
        if (value := getattr(choices.model, name)) % step:
            yield f"model.{name}: is not a multiple of this model's {step} pixels (got {value}); round it"


def _format(choices: Choices, layers: list[Layer], kept: list[str]) -> Iterator[str]:
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


def _memory(pinned: dict[str, Any]) -> Iterator[str]:
    """The weights of the backbones, which are in memory once; what does not fit the GPU lies in RAM."""
    need, ram = pinned["parameters"] * BYTES[pinned["dtype"]], environment.ram()
    have = ram + max((g["memory"] for g in environment.gpus()), default=0)
    if need > have:
        yield (
            f"model: its backbone weighs {size(need)} in {pinned['dtype']}, but RAM and GPU have {size(have)} together "
            f"(got {pinned['parameters'] / 1e9:.1f} billion parameters); use a larger machine, or a 16-bit model.dtype"
        )


def _disk(ctx: Context, choices: Choices, pinned: dict[str, Any]) -> Iterator[str]:
    """The graph that is to be written, every layer taken for quantized."""
    if choices.export is None:
        return
    plain = BYTES[choices.export.high_precision_dtype or pinned["dtype"]]
    packed = [m.bits(choices.format.block_size) for m in formats.methods(choices.format)] if choices.format else []
    bits = min(packed, default=8 * plain)
    need, free = int(pinned["parameters"] * bits / 8), disk_usage(ctx.out).free
    if need > free:
        yield (
            f"export: the graph takes at least {size(need)}, but the store's disk has {size(free)} left "
            f"(got {str(ctx.out.parent)!r}); free some by `diffopt store gc`, or set DIFFOPT_STORE to another disk"
        )


def _steps_and_prompts(ctx: Context, choices: Choices, pipeline: Pipeline) -> None:
    """The scheduler with the numbers of steps, and the tokenizers with the prompts."""
    from diffopt.pipeline.open import open_tokenizers
    from diffopt.pipeline.scheduler import check_steps, scheduler
    from diffopt.pipeline.texts import check_length

    pinned = pipeline.json("pipeline.json")
    own = scheduler(ctx.locate(pinned["source"]), pinned["scheduler"])
    sets = []
    if choices.calib:
        check_steps(own, choices.calib.n_steps, "calib.n_steps")
        sets.append(("calib.prompts", choices.calib.prompts.prompts[: choices.calib.size]))
    if choices.eval:
        check_steps(own, choices.eval.steps, "eval.steps")
        sets.append(("eval.prompts", choices.eval.prompts.prompts[: choices.eval.size]))
    assert choices.model is not None
    texts = sets and pinned["weights"] != "random" and not models.family(pinned["family"]).animates
    if texts and choices.model.long_prompts == "refuse":
        pipe = open_tokenizers(ctx, pipeline)
        for where, prompts in sets:
            check_length(pipe, prompts, choices.model, where)
