"""What is refused before anything runs: combinations that this machine or a runtime cannot do. One line each."""

from collections.abc import Iterator

from diffopt import formats, models
from diffopt.environment import Environment
from diffopt.errors import PlanError
from diffopt.metrics import METRICS
from diffopt.rates import PEAK
from diffopt.runtimes import RUNTIMES
from diffopt.view import Choices


def check(choices: Choices, environment: Environment) -> None:
    """Raises PlanError with every reason why the choices cannot be carried out here."""
    reasons = [
        *_prompts(choices),
        *_format(choices),
        *_sense(choices),
        *_cache(choices),
        *_export(choices, environment),
        *_runtime(choices, environment),
    ]
    if reasons:
        raise PlanError("\n".join(reasons))


def _prompts(choices: Choices) -> Iterator[str]:
    """Models that animate take pictures, the others texts."""
    if choices.model is None:
        return
    family = models.family(choices.model.family)
    for name, group in {"calib": choices.calib, "eval": choices.eval}.items():
        if group and family.animates != (group.prompts.folder is not None):
            takes, kind = ("pictures", "texts") if family.animates else ("texts", "pictures")
            advice = "a directory of pictures" if family.animates else "a file of texts"
            yield f"{name}.prompts: {family.name} takes {takes}, not {kind} (got {group.prompts.where}); give {advice}"
    if family.animates and choices.eval:
        for metric in (m for m in choices.eval.metrics if METRICS[m].of_text):
            yield f"eval.metrics: {metric} compares with a text, and {family.name} has none (got {metric}); leave it out"


def _format(choices: Choices) -> Iterator[str]:
    if choices.format and choices.format.quantize_mha and not formats.method(choices.format.name).attention:
        yield (
            f"format.quantize_mha: {choices.format.name} has no quantized attention (got true); "
            "drop it, or choose format=fp8 or format=nvfp4"
        )
    if choices.format and choices.format.quantize_mha and choices.model and not models.family(choices.model.family).attention:
        yield (
            f"format.quantize_mha: Model-Optimizer cannot quantize the attention of {choices.model.family} (got true); drop it"
        )


def _sense(choices: Choices) -> Iterator[str]:
    sense, picked = choices.sense, choices.format
    if sense and choices.calib and sense.size > choices.calib.size:
        yield f"sense.size: is more than the calib.size={choices.calib.size} prompts (got {sense.size}); lower it"
    if sense and picked and picked.name == "auto":
        for name in {*picked.candidates} - {*sense.formats, "full"}:
            yield (
                f"format.candidates: {name} is not tried by sense.formats={sense.formats} (got {picked.candidates}); "
                "add it there, or drop it here"
            )
    if picked and picked.name == "auto" and picked.budget and picked.budget.gpu:
        gpu = picked.budget.gpu
        for name in {*picked.candidates} - {*PEAK[gpu]}:
            yield (
                f"format.candidates: the tensor cores of {gpu} have no {name} (got {picked.candidates}); drop it, "
                "or set another format.budget.gpu"
            )


def _cache(choices: Choices) -> Iterator[str]:
    if choices.cache and choices.model and not models.family(choices.model.family).block_cache:
        yield (
            f"cache: diffusers' FirstBlockCache does not know the blocks of {choices.model.family} "
            f"(got cache={choices.cache.model_dump().get('method')}); drop the cache"
        )


def _export(choices: Choices, environment: Environment) -> Iterator[str]:
    export, picked = choices.export, choices.format
    if export is None or choices.model is None:
        return
    if export.engine and environment["tensorrt"] is None:
        yield (
            "export: no engine builder is installed (got export.engine=true); install one with "
            "`pip install 'diffopt[tensorrt-rtx]'`, or go without a plan by export=onnx"
        )
    dtype = export.high_precision_dtype or choices.model.dtype
    if picked:
        blocks = next((m for m in formats.methods(picked) if m.export_dtype), None)
        if blocks and dtype == "float32":
            yield (
                f"export.high_precision_dtype: {blocks.name} does not export from float32: {blocks.export_reason} "
                f"(got {dtype}); set export.high_precision_dtype={blocks.export_dtype}"
            )
        if picked.quantize_mha and dtype == "float32":
            yield (
                "export.high_precision_dtype: FP8 attention needs 16-bit tensors (got float32); "
                "set export.high_precision_dtype=float16"
            )


def _runtime(choices: Choices, environment: Environment) -> Iterator[str]:
    if choices.eval is None:
        return
    if choices.model and choices.model.weights == "random" and choices.eval.metrics:
        yield (
            f"eval.metrics: random weights draw noise, which has no quality (got {', '.join(choices.eval.metrics)}); "
            "set eval.metrics=[] for times alone, or model.weights=pretrained"
        )
    if choices.model and models.family(choices.model.family).frame_step is None:
        for metric in (m for m in choices.eval.metrics if METRICS[m].of_video):
            yield f"eval.metrics: {metric} judges videos, {choices.model.family} draws pictures (got {metric}); leave it out"
    runtime = RUNTIMES[choices.eval.runtime]
    name = choices.format.name if choices.format else None
    if name not in runtime.kernels and not runtime.simulates:
        yield f"eval.runtime: {runtime.name} has no kernels for {name} (got {runtime.name}); set eval.runtime=torch"
    if runtime.name == "onnxruntime":
        if environment["onnxruntime"] is None:
            yield "eval.runtime: onnxruntime is not installed (got onnxruntime); `pip install onnxruntime-gpu`"
        if choices.cache:
            yield (
                "cache: onnxruntime runs the graph as one piece, so no block of it can be skipped "
                "(got eval.runtime=onnxruntime); set eval.runtime=torch, or drop the cache"
            )
        if choices.export is None:
            yield "export: the onnxruntime runtime runs an ONNX graph (got no export); choose export=onnx"
        elif (choices.export.high_precision_dtype or (choices.model and choices.model.dtype)) != "float32":
            yield (
                "export.high_precision_dtype: the onnxruntime runtime runs float32 graphs on a CPU (got another); "
                "set export.high_precision_dtype=float32"
            )
