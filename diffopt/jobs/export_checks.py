"""What of an export is refused before anything runs: formats that its layout does not have, and what is not installed."""

from collections.abc import Iterator, Sequence

from diffopt import formats, models
from diffopt.files.layers import Layer
from diffopt.formats.method import HELD
from diffopt.groups.cut import cuts
from diffopt.groups.eval import OF_GRAPHS
from diffopt.groups.export import LAYOUTS
from diffopt.groups.format import Format
from diffopt.groups.model import Model
from diffopt.kernels.capability import KIND
from diffopt.layouts import COMFYUI, MULTIPLES, RANKS, SVDQUANT, UNREAD, demo_diffusion
from diffopt.layouts.families import NAMES
from diffopt.machine.environment import Environment, gpus
from diffopt.runtimes import RUNTIMES
from diffopt.view import Choices


def exported(choices: Choices, environment: Environment) -> Iterator[str]:
    """Why the chosen export cannot be made of the chosen format, or here."""
    export, picked = choices.export, choices.format
    if export is None or choices.model is None:
        return
    if export.kind != "graph":
        if picked:
            yield from _packed(export.kind, choices.model, picked)
        return
    if export.engine and environment["tensorrt"] is None:
        yield (
            "export: no engine builder is installed (got export.engine=true); install one with "
            "`pip install 'diffopt[tensorrt-rtx]'`, or go without a plan by export=onnx"
        )
    yield from _shapes(choices)
    yield from _target(choices)
    if export.engine and export.refit and (environment["tensorrt"] or {}).get("flavour") == "tensorrt_rtx" and not gpus():
        yield (
            "export.refit: TensorRT-RTX builds a plan that can be refitted on a GPU alone (got true, and no GPU here); "
            "set export.refit=false, or build where there is one"
        )
    dtype = export.high_precision_dtype or choices.model.dtype
    if picked:
        yield from _held(picked, dtype)


def _packed(kind: str, model: Model, picked: Format) -> Iterator[str]:
    """Why a format has no place in a layout of files."""
    strange = [m for m in formats.methods(picked) if m.name not in formats.OURS]
    if kind in LAYOUTS and strange:
        yield (
            f"export: no layout is known here of {strange[0].name}, another package's format (got {kind}); "
            f"choose {'export=onnx' if strange[0].weights_held() in HELD else 'no export'}"
        )
        return
    if kind in LAYOUTS and picked.quantize_mha:
        yield (
            "format.quantize_mha: other programs' layouts have no place for quantized attention (got true); "
            f"set format.quantize_mha=false, or drop export={kind}"
        )
    if kind == "comfyui":
        yield from _comfyui(model.family, picked, model.quantized is not None)
    if kind in SVDQUANT:
        yield from _svdquant(kind, model.dtype, picked)
    if kind == "native" and picked.name not in KIND:
        there = " or ".join(f"format={name}" for name in KIND)
        yield f"export: there are no native kernels for {picked.name} (got native); choose {there}"
    if kind in ("native", "comfyui") and picked.inputs == "full":
        why = "no kernel multiplies NVFP4 by 16 bits" if kind == "native" else "ComfyUI rounds them"
        yield f"format.inputs: {why} (got full, export={kind}); set format.inputs=max, or choose export=huggingface"


def _held(picked: Format, dtype: str) -> Iterator[str]:
    """Why no graph, with the rest in a dtype, holds a format."""
    for method in (m for m in formats.methods(picked) if m.weights_held() not in HELD):
        yield (
            f"export: no graph holds the weights of {method.name} (got {method.weights_held()}); choose another format, or "
            "no export"
        )
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


def _shapes(choices: Choices) -> Iterator[str]:
    """Sizes that one graph is to take, of a family whose graphs can, and around the recipe's own."""
    export, model = choices.export, choices.model
    assert export is not None
    assert model is not None
    family = models.of(model)
    if export.profiles == "original" and not family.original:
        there = ", ".join(n for n in models.names() if models.family(n).original)
        yield (
            f"export.profiles: Model-Optimizer's example builds no plans of {family.name} (got original); set "
            f"export.profiles=own, or choose a model of {there}"
        )
    sizes = {"heights": model.height, "widths": model.width, "frames": model.frames}
    given = family.original if export.profiles == "original" else {n: getattr(export, n) for n in sizes}
    asked = {name: pair for name in sizes if (pair := given.get(name))}
    for name, (least, most) in asked.items():
        own, field = sizes[name], name if name == "frames" else name.removesuffix("s")
        if own is None:
            yield f"export.{name}: {family.name} makes no videos (got {[least, most]}); set export.{name}=null"
        elif not least <= own <= most:
            yield (
                f"model.{field}: is not within the graph's export.{name}={[least, most]} (got {own}), which plans are tuned "
                f"around; choose one that is"
            )
        step, first = (family.frame_step or 1, 1) if name == "frames" else (family.size_step, 0)
        if wrong := [n for n in (least, most) if (n - first) % step]:
            more = " and one" if first else ""
            yield f"export.{name}: is not a multiple of {step}{more} (got {wrong[0]}); round it"
    if family.listed and export.max_batch_size:
        yield (
            f"export.max_batch_size: a graph of {family.name}, which takes its rows one by one, has their number in it "
            f"(got {export.max_batch_size}); set export.max_batch_size=null, and export.batch_size to that of every call"
        )
    for name, pair in [*asked.items()][:1]:
        if not family.resizable:
            yield (
                f"export.{name}: a graph of {family.name} has the size in it, so it takes one alone (got {[*pair]}); "
                f"set export.{name}=null, and export a graph for each size"
            )
        if cuts(choices):
            yield (
                f"export.{name}: a graph that is cut for a cache takes one size (got {[*pair]}); "
                f"set export.{name}=null, or cache=null"
            )


def _target(choices: Choices) -> Iterator[str]:
    """Another program's names, where it has them for this family and format."""
    export, model, picked = choices.export, choices.model, choices.format
    if export is None or export.target is None or model is None:
        return
    taken = demo_diffusion.FORMATS.get(model.family)
    if taken is None:
        why = ", since it gives a ControlNet's states to SD3.5's graph, which has no input for them here"
        yield (
            f"export.target: demoDiffusion takes no graph of {model.family} from here{why if model.family == 'sd3' else ''} "
            f"(got demo_diffusion); set export.target=null, or choose a model of {' or '.join(demo_diffusion.FORMATS)}"
        )
    elif picked and picked.name not in taken:
        there = " or ".join(f"format={name}" for name in taken if name)
        yield f"export.target: demoDiffusion takes no {picked.name} of {model.family} (got demo_diffusion); choose {there}"
    if export.engine:
        yield "export.target: demoDiffusion builds its own plan of the graph (got export.engine=true); choose export=onnx"
    if cuts(choices):
        yield "export.target: demoDiffusion runs no graph that is cut for a cache (got demo_diffusion); set cache=null"
    if choices.eval and (RUNTIMES[choices.eval.runtime].of_graph or {*choices.eval.bench} & {*OF_GRAPHS}):
        yield (
            "export.target: a graph with demoDiffusion's names is not run here (got demo_diffusion); set eval=null, or "
            "eval.runtime=torch"
        )


def _comfyui(family: str, picked: Format, came: bool) -> Iterator[str]:
    if family not in NAMES:
        yield (
            f"export: of {family}'s layers the names in ComfyUI are not known here, but of {', '.join(NAMES)}'s (got comfyui); "
            "choose export=huggingface"
        )
        return
    methods, fuses = formats.methods(picked), NAMES[family].fuses()
    if unread := [m.name for m in methods if m.name not in COMFYUI]:
        why, _, advice = UNREAD[unread[0]].partition("; ")
        yield f"export: ComfyUI does not read {unread[0]}: {why} (got comfyui); {advice}"
    elif fuses and picked.name == "auto":
        yield (
            f"format: q, k and v of {family} are one layer for ComfyUI, and a mix gives each a format of its own (got auto); "
            "choose one format, or export=huggingface"
        )
    elif fuses and methods[0].shares and not came and not picked.share_scales:
        yield (
            "format.share_scales: q, k and v are one layer for ComfyUI, with one scale (got false); "
            "set format.share_scales=true"
        )


def _svdquant(kind: str, dtype: str, picked: Format) -> Iterator[str]:
    reader, form = SVDQUANT[kind], "nvfp4_svdquant"
    if picked.name != form:
        yield f"export: {reader}'s layout has SVDQuant alone (got {kind} with {picked.name}); choose format={form}"
        return
    if dtype != "bfloat16":
        yield f"model.dtype: {reader} computes this layout in BF16 (got {dtype}); set model.dtype=bfloat16"
    if not picked.round_scales:
        yield f"format.round_scales: {reader} keeps scales in BF16 (got false); set format.round_scales=true"
    if kind == "svdquant" and not picked.share_scales:
        yield (
            f"format.share_scales: q, k and v are one layer for {reader}, with one projection down (got false); "
            "set format.share_scales=true"
        )
    rank = picked.rank or formats.method(form).rank or 0
    if rank % (step := RANKS.get(kind, 1)):
        yield f"format.rank: {reader} takes multiples of {step} (got {rank}); round it"


def lengths(choices: Choices, quantized: Sequence[Layer]) -> Iterator[str]:
    """Why the chosen export does not take these layers."""
    kind = choices.export.kind if choices.export else ""
    outputs, inputs = MULTIPLES.get(kind, (1, 1))
    broken = [x for x in quantized if x.shape[0] % outputs or x.shape[1] % inputs]
    for layer in broken[:1]:
        yield (
            f"export: {layer.name} has {layer.shape[0]} outputs and {layer.shape[1]} inputs, which are not multiples of "
            f"{outputs} and {inputs} (got {kind}; {len(broken)} such layers); leave them out by format.exclude"
        )
