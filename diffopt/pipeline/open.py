"""Opening a pinned pipeline: whole, or only those of its parts that a stage computes with."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights

from diffopt.artifact import Components, Pipeline
from diffopt.errors import SourceError
from diffopt.files.components import ComponentsFile
from diffopt.files.originals import OriginalsFile
from diffopt.files.pipeline import PipelineFile
from diffopt.machine import output
from diffopt.models import Family, of
from diffopt.models.parts import Parts
from diffopt.models.pipelines import GUIDER, part_class
from diffopt.pipeline import original
from diffopt.pipeline.foreign import config_of, reading
from diffopt.pipeline.lora import fuse
from diffopt.pipeline.placement import fits, place
from diffopt.pipeline.scheduler import scheduler
from diffopt.stage import Context

output.libraries()


def open_pipeline(ctx: Context, pipeline: Pipeline, backbone: torch.nn.Module | None = None, *, texts: bool = True) -> Any:
    """The diffusers pipeline on the run's device, in the pinned dtype, silent; with `backbone` in the place of its own.

    With random weights, or without `texts`, it has no text encoders, and takes embeddings alone.
    """
    pinned = PipelineFile.read(pipeline.path)
    own: dict[str, Any] = by_name(pinned, backbone) if backbone is not None else {}
    if not texts or pinned.weights == "random":
        own |= dict.fromkeys(_texts(ctx, pinned))
    if backbone is None and (pinned.weights == "random" or pinned.lora):
        own |= by_name(pinned, open_backbone(ctx, pipeline))
    return place(_assemble(ctx, pipeline, own | _drawn(ctx, pinned)), ctx.device, ctx.lean)


def open_around(ctx: Context, pipeline: Pipeline, *, texts: bool) -> tuple[Any, dict[str, Any]]:
    """The same without backbones, and those by name, on the meta device: for what is to stand in their places."""
    pinned = PipelineFile.read(pipeline.path)
    with default_dtype(getattr(torch, pinned.dtype)):
        empty = by_name(pinned, empty_backbone(ctx, pipeline))
    own: dict[str, Any] = {**empty}
    if not texts or pinned.weights == "random":
        own |= dict.fromkeys(_texts(ctx, pinned))
    pipe = _assemble(ctx, pipeline, own | _drawn(ctx, pinned))
    pipe.register_modules(**dict.fromkeys(empty))  # they were there to tell their configs, and cannot be placed
    return place(pipe, ctx.device), empty


def open_texts(ctx: Context, pipeline: Pipeline, components: Components | None = None) -> Any:
    """The pipeline with nothing but its text encoders and tokenizers, `components` in the place of its own. Not for random
    weights, which have none."""
    pinned = PipelineFile.read(pipeline.path)
    none: dict[str, Any] = dict.fromkeys([*pinned.backbones, "vae", *of(pinned).beside, *of(pinned).decoders])
    for name in ComponentsFile.read(components.path).parts if components else ():
        assert components is not None
        how = {"dtype": getattr(torch, pinned.dtype)}
        none[name] = _read(getattr(transformers, pinned.components[name]), components.path / name, **how).eval()
    if of(pinned).asks:  # some ask for the VAE's config when they are made, and for their backbone's precision
        pipe = _assemble(ctx, pipeline, none | {"vae": _empty_vae(ctx, pinned)})
        pipe.register_modules(vae=None)
        place(pipe, ctx.device)
        own = SimpleNamespace(**config(ctx, pinned, pinned.backbones[0]))
        setattr(pipe, pinned.backbones[0], SimpleNamespace(config=own, dtype=getattr(torch, pinned.dtype)))
        return pipe
    pipe = place(_assemble(ctx, pipeline, none), ctx.device)
    if {*_parts(ctx, pinned).left_out} & {*family_of(pipeline).spare}:  # zeros stand for it, as wide as the backbone takes
        setattr(pipe, pinned.backbones[0], SimpleNamespace(config=SimpleNamespace(**config(ctx, pinned, pinned.backbones[0]))))
    return pipe


def open_denoiser(ctx: Context, pipeline: Pipeline) -> Any:
    """The pipeline with nothing but its backbones, what runs beside them, and scheduler: it takes embeddings and gives latents.

    One that is given pictures has its VAE too, and so has one whose latents are scaled by statistics of its VAE.
    """
    pinned, kind = PipelineFile.read(pipeline.path), family_of(pipeline)
    own = by_name(pinned, open_backbone(ctx, pipeline)) | dict.fromkeys(_texts(ctx, pinned))
    vae = _empty_vae(ctx, pinned)
    if kind.animates or kind.pictures or hasattr(vae, "bn"):  # the VAE encodes them
        return place(_assemble(ctx, pipeline, own | _drawn(ctx, pinned)), ctx.device)
    pipe = _assemble(ctx, pipeline, own | dict.fromkeys(kind.decoders) | {"vae": vae})
    pipe.register_modules(vae=None)  # it was there to tell its scale
    place(pipe, ctx.device)
    if family_of(pipeline).asks:  # some ask for its config after that too
        pipe.vae = SimpleNamespace(config=vae.config, dtype=getattr(torch, pinned.dtype), **dict(vae.named_buffers()))
    return pipe


def _empty_vae(ctx: Context, pinned: PipelineFile) -> Any:
    with init_empty_weights(), reading(ctx.locate(pinned.source) / "vae"):
        return _class(ctx, pinned, "vae").from_config(config(ctx, pinned, "vae"))


def open_vae(ctx: Context, pipeline: Pipeline) -> Any:
    """The VAE alone, in evaluation mode, in FP32: it is small, and some overflow in 16 bits."""
    pinned = PipelineFile.read(pipeline.path)
    if pinned.weights == "random":
        return _random(ctx, pinned, "vae", ctx.device).float().eval()
    cls, directory = _class(ctx, pinned, "vae"), ctx.locate(pinned.source)
    if own := _originals(ctx, pipeline, torch.float32, ["vae"]):
        return own["vae"].to(ctx.device)
    variant = _parts(ctx, pinned).variant_of("vae")
    return _read(cls, directory, subfolder="vae", torch_dtype=torch.float32, variant=variant).to(ctx.device).eval()


def open_backbone(ctx: Context, pipeline: Pipeline) -> torch.nn.Module:
    """The denoising network alone, its adapters fused, in evaluation mode, on the run's device where it fits, else on the CPU.

    A pipeline with several has them in a ModuleDict, by name.
    """
    pinned = PipelineFile.read(pipeline.path)
    directory = ctx.locate(pinned.source)
    there = device(ctx, pipeline)
    found: dict[str, torch.nn.Module] = {}
    for name in pinned.backbones:
        if pinned.weights == "random":
            found[name] = _random(ctx, pinned, name, there)
        elif own := _originals(ctx, pipeline, getattr(torch, pinned.dtype), [name]):
            found |= own
        else:
            cls = _class(ctx, pinned, name)
            variant = _parts(ctx, pinned).variant_of(name)
            how = {"subfolder": name, "torch_dtype": getattr(torch, pinned.dtype), "variant": variant}
            found[name] = _read(cls, directory, **how)
        # Pretrained weights are read to the CPU: fused there they are the same on every device, and a GPU holds them once.
        fuse(ctx, pipeline, {name: found[name]})
        found[name] = found[name].to(there).eval()
    return torch.nn.ModuleDict(found) if len(found) > 1 else next(iter(found.values()))


def device(ctx: Context, pipeline: Pipeline) -> str:
    """Where the backbone lies: the run's device where it fits, else the CPU."""
    pinned = PipelineFile.read(pipeline.path)
    return ctx.device if fits(pinned.parameters * getattr(torch, pinned.dtype).itemsize, ctx.device) else "cpu"


def blank_backbone(ctx: Context, pipeline: Pipeline) -> torch.nn.Module:
    """As `open_backbone`, in the same precisions, with no memory for its parameters; tables that follow from its config are."""
    pinned = PipelineFile.read(pipeline.path)
    dtype, found = getattr(torch, pinned.dtype), {}
    for name in pinned.backbones:
        found[name] = blank_part(ctx.locate(pinned.source) / name, ("diffusers", pinned.components[name]), dtype)
    return torch.nn.ModuleDict(found) if len(found) > 1 else next(iter(found.values()))


def empty_backbone(ctx: Context, pipeline: Pipeline) -> torch.nn.Module:
    """The same modules as `open_backbone` gives, on the meta device."""
    pinned = PipelineFile.read(pipeline.path)
    with torch.device("meta"):
        found = {n: _class(ctx, pinned, n).from_config(config(ctx, pinned, n)).eval() for n in pinned.backbones}
    return torch.nn.ModuleDict(found) if len(found) > 1 else next(iter(found.values()))


def blank_part(folder: Path, kind: Sequence[str], dtype: torch.dtype) -> torch.nn.Module:
    """A part of a class, given with its library, by its config; with no memory for its parameters, in the precisions that
    from_pretrained gives."""
    library, name = kind
    with default_dtype(dtype), init_empty_weights():
        if library == "transformers":
            cls = getattr(transformers, name)
            made = cls(cls.config_class.from_pretrained(folder))
            return _widened(made.to(dtype), dtype if dtype == torch.float16 else torch.float32).eval()
        cls = getattr(diffusers, name)
        made = cls.from_config(config_of(folder / "config.json"))
    return _widened(made, dtype).eval()


def _originals(ctx: Context, pipeline: Pipeline, dtype: torch.dtype, names: Sequence[str]) -> dict[str, torch.nn.Module]:
    """Those parts that are in files under their makers' names or in FP8, read of them to the CPU. Raises SourceError."""
    if not (pipeline.path / OriginalsFile.NAME).is_file():
        return {}
    pinned = PipelineFile.read(pipeline.path)
    known, parts, found = OriginalsFile.read(pipeline.path).parts, _parts(ctx, pinned), {}
    for name in (n for n in names if n in known):
        files = parts.read_here(name)
        blank = blank_part(parts.directory / name, parts.index[name], dtype)
        try:
            found[name] = original.read(files, known[name], blank)
        except ValueError as e:
            what, _, advice = str(e).partition("; ")
            raise SourceError(f"model.source: {what} (got {files[0].name!r}); {advice or 'download it again'}") from None
    return found


def family_of(pipeline: Pipeline) -> Family:
    return of(PipelineFile.read(pipeline.path))


def config(ctx: Context, pinned: PipelineFile, component: str) -> dict[str, Any]:
    """A component's config.json."""
    return dict(config_of(ctx.locate(pinned.source) / component / "config.json"))


def by_name(pinned: PipelineFile, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The backbones that `open_backbone` gave as one module, by the pipeline's names for them."""
    names = pinned.backbones
    return {n: module[n] for n in names} if isinstance(module, torch.nn.ModuleDict) else {names[0]: module}


def _texts(ctx: Context, pinned: PipelineFile) -> list[str]:
    """What the pipeline has besides what draws and what guides: tokenizers, text encoders and what goes with them."""
    draws = (*pinned.backbones, *of(pinned).beside, "vae", *of(pinned).decoders, "scheduler", GUIDER)
    return [k for k in _parts(ctx, pinned).named if k not in draws]


def _drawn(ctx: Context, pinned: PipelineFile) -> dict[str, Any]:
    """With random weights, those parts that draw beside the backbones."""
    names = ("vae", *of(pinned).beside, *of(pinned).decoders) if pinned.weights == "random" else ()
    return {n: _random(ctx, pinned, n, ctx.device).eval() for n in names}


def _parts(ctx: Context, pinned: PipelineFile) -> Parts:
    return Parts(ctx.locate(pinned.source), of(pinned), pinned.variant)


def _assemble(ctx: Context, pipeline: Pipeline, own: dict[str, Any]) -> Any:
    """The pipeline of the components `own`, those that are None left out, and the source's for the rest, adapters fused."""
    pinned = PipelineFile.read(pipeline.path)
    directory = ctx.locate(pinned.source)
    parts = _parts(ctx, pinned)
    own = dict.fromkeys(parts.left_out) | own | {"scheduler": scheduler(directory, pinned.scheduler)}
    originals = _originals(ctx, pipeline, getattr(torch, pinned.dtype), [n for n in parts.named if n not in own])
    kind = of(pinned)
    named = config_of(directory / "model_index.json")["_class_name"]
    where: Any = import_module(f"diffopt.models.{kind.ours}") if kind.ours else diffusers
    cls = getattr(where, kind.opened(named) or kind.pipeline)
    dtype, variant = getattr(torch, pinned.dtype), _asked(parts, own | originals)
    pipe = _read(cls, directory, torch_dtype=dtype, variant=variant, **own, **originals)
    pipe.set_progress_bar_config(disable=True)
    if hasattr(pipe, "guarded"):
        pipe.guarded = pinned.weights == "pretrained"
    read = {n: m for n, m in pipe.components.items() if n not in own and isinstance(m, torch.nn.Module)}
    fuse(ctx, pipeline, read)
    return pipe


def _asked(parts: Parts, own: Mapping[str, Any]) -> str | None:
    """The variant, where a part that is read has it: diffusers refuses one of which it finds nothing."""
    return next((parts.variant for n in parts.named if n not in own and parts.variant_of(n)), None)


def _class(ctx: Context, pinned: PipelineFile, component: str) -> Any:
    library, _ = _parts(ctx, pinned).index[component]
    return part_class(library, config(ctx, pinned, component)["_class_name"])


def _random(ctx: Context, pinned: PipelineFile, component: str, device: str) -> torch.nn.Module:
    """A component with random weights, the same ones each time on one kind of device."""
    cls, dtype = _class(ctx, pinned, component), getattr(torch, pinned.dtype)
    folder = ctx.locate(pinned.source) / component
    with torch.random.fork_rng(), default_dtype(dtype), torch.device(device), reading(folder):
        torch.manual_seed(0)
        module: torch.nn.Module = cls.from_config(config(ctx, pinned, component))
    return _widened(module, dtype).to(device)


def _widened(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """In the precisions that from_pretrained gives: some parameters in FP32, tables that a file has in that of the weights."""
    wide = getattr(module, "_keep_in_fp32_modules", None) or []
    for part in module.modules():
        for name, table in part._buffers.items():
            if table is not None and table.is_floating_point() and name not in part._non_persistent_buffers_set:
                part._buffers[name] = table.to(dtype)
    for name, parameter in module.named_parameters():
        if dtype != torch.float32 and any(part in wide for part in name.split(".")):
            parameter.data = parameter.data.float()
    return module


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Tables that a class makes are in its weights' precision, as in from_pretrained."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _read(cls: Any, directory: Path, **how: Any) -> Any:
    """Raises SourceError also where a config asks for weights that are in no file, which diffusers leaves without numbers."""
    with reading(directory):
        found = cls.from_pretrained(directory, **how)
    parts = {n: m for n, m in found.components.items() if n not in how} if hasattr(found, "components") else {"": found}
    for name, module in parts.items():
        if isinstance(module, torch.nn.Module) and (lost := [n for n, x in module.named_parameters() if x.is_meta]):
            of, more = f"its {name}'s" if name else "its", f", nor of {len(lost) - 1} more" if lost[1:] else ""
            raise SourceError(
                f"model.source: has no weights of {lost[0]}{more}, for which {of} config asks (got {str(directory)!r}); "
                "download it again"
            )
    return found


def tokens(ctx: Context, pipeline: Pipeline) -> int:
    """Tokens that a prompt of the source is padded to where the model's config does not say; 0 where nothing does."""
    pinned = PipelineFile.read(pipeline.path)
    if pinned.found:
        return pinned.found.tokens or 0
    directory = ctx.locate(pinned.source)
    paths = [directory / name / "tokenizer_config.json" for name in ("tokenizer_2", "tokenizer")]
    found = [config_of(path).get("model_max_length", 0) for path in paths if path.is_file()]
    return int(found[0]) if found and isinstance(found[0], int | float) else 0


def frame_rate(ctx: Context, pipeline: Pipeline) -> int:
    """Frames a second at which a video of this model is played."""
    return family_of(pipeline).frame_rate(config(ctx, PipelineFile.read(pipeline.path), "vae"))
