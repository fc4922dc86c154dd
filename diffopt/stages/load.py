"""load: pin the source and its adapters, and read from it what later stages, checks and the report say of the model."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field

from diffopt import models
from diffopt.artifact import Pipeline
from diffopt.errors import PlanError, suggestion
from diffopt.files.found import Found
from diffopt.files.json_file import plain
from diffopt.files.layers import write_layers
from diffopt.files.lora import write_hits
from diffopt.files.pipeline import FusedAdapter, PipelineFile
from diffopt.groups.lora_file import Adapter
from diffopt.groups.model import Dtype, Model, Weights
from diffopt.models.parts import INDEX, Parts
from diffopt.models.pipelines import part_class
from diffopt.pipeline.foreign import check, config_of, made, reading
from diffopt.stage import Context, stage
from diffopt.store.source import ModelSource
from diffopt.view import Choices, Group, View

if TYPE_CHECKING:
    import torch

log = logging.getLogger("diffopt")

FINDING = 4
"""Of the rules by which a family is found and prompts are given to its pipeline (diffopt/finding, models/prompt_encoding.py):
raised where they change, so that what was found by others is found again, and nothing else is."""


class LoadView(View, of=Model):
    family: str
    source: ModelSource
    """Of the pipeline's files: the architecture, for random weights."""
    weights: Weights
    variant: str | None = None
    dtype: Dtype
    scheduler: str | None
    lora: list[Adapter] = Field(default_factory=list)
    found: Found | None = None

    @classmethod
    def fields_read(cls) -> frozenset[str]:
        return super().fields_read() | {"architecture", "base", "parts", "trust"}

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        model = choices.model
        assert model is not None
        idle = {"source", "variant", "base", "parts", "trust"} if model.weights == "random" else {"architecture"}
        if model.source == model.architecture:  # one folder, by either name
            idle -= {"source"}
        if not model.base or model.quantized:  # which `adopt` reads
            idle |= {"source"} if model.base else {"base"}
        return cls.fields_read() - idle

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Model)
        variant = group.variant if group.weights == "pretrained" else None
        return [cls(**{n: getattr(group, n) for n in cls.model_fields} | {"source": group.fetched, "variant": variant})]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        found = self.model_dump(mode="json")
        adapters = found.pop("lora")
        if found["variant"] is None:  # as it was before there were any
            del found["variant"]
        del found["found"]
        if self.family == models.AUTO.name:
            found["finding"] = FINDING
        if self.found:  # without what has its default: a field that is added later changes no key
            found["found"] = plain(self.found)
        if adapters:  # by what they are: a digest has the file within the repository, null is the first backbone
            first = None if self.family == models.AUTO.name else models.of(self).backbones[0]
            rows = [{"path": a["path"], "scale": a["scale"], "backbone": a["backbone"] or first} for a in adapters]
            found["lora"] = rows
        return found


@stage(version=3, when="model", probes=("numerics",))
def load(ctx: Context, model: LoadView) -> Pipeline:
    import diffusers
    import torch

    from diffopt.finding.find import find
    from diffopt.pipeline.scheduler import scheduler
    from diffopt.quantization.layers import layers_of

    digest = ctx.digest(model.source)
    directory = ctx.locate(digest)
    if model.family == models.AUTO.name and model.found is None:
        _check(Parts(directory, models.unknown(directory), model.variant), model)
        model = model.model_copy(update={"found": (found := find(directory))})
        if found.waiting:
            log.warning("model.source: %s", found.waiting)
    family = models.of(model)
    parts = Parts(directory, family, model.variant)
    _check(parts, model)
    scheduler(directory, model.scheduler)
    backbones = [name for name in family.backbones if name in parts.named]
    configs = {name: dict(config_of(directory / name / "config.json")) for name in [*backbones, "vae"]}
    vae = configs.pop("vae")
    modules, classes = {}, parts.named
    with torch.device("meta"):  # buffers too: SD3.5 medium's table of positions took 9 s
        for name, config in configs.items():
            with reading(directory / name / "config.json"):
                modules[name] = made(getattr(diffusers, classes[name]), config)
    if model.weights == "pretrained":
        _originals(ctx.out, parts, modules, model)
    first = next(iter(modules.values()))
    with reading(directory / "vae" / "config.json"):
        if cls := part_class(*parts.index["vae"]):
            check(cls, vae)
    with reading(directory):
        largest = family.largest(next(iter(configs.values())))
        size_step = family.coarser(next(iter(configs.values())), vae) or family.size_step
    PipelineFile(
        source=digest,
        family=model.family,
        weights=model.weights,
        dtype=model.dtype,
        scheduler=model.scheduler,
        components=classes,
        backbones=tuple(modules),
        parameters=sum(p.numel() for m in modules.values() for p in m.parameters()),
        blocks={name: len(getattr(first, name)) for name in family.blocks},
        largest=largest,
        size_step=size_step,
        variant=parts.variant if model.weights == "pretrained" else None,
        found=model.found,
        lora=_adapters(ctx, model, directory, classes, modules) if model.lora else (),
    ).write(ctx.out)
    prefixed = {f"{name}." if len(modules) > 1 else "": module for name, module in modules.items()}
    write_layers(ctx.out, (layer for prefix, module in prefixed.items() for layer in layers_of(module, prefix)))


def _check(parts: Parts, model: LoadView) -> None:
    """Raises PlanError, a line for each part that is missing or not whole; says which optional ones are left out."""
    import diffusers

    pretrained = model.weights == "pretrained"
    index = config_of(parts.directory / INDEX)
    name = parts.family.opened(index.get("_class_name", "")) or parts.family.pipeline
    if not hasattr(diffusers, name):
        raise PlanError(
            f"model.source: is a {name}, which diffusers {diffusers.__version__} has not (got {model.source.name!r}); "
            "install a newer one"
        )
    cls: Any = getattr(diffusers, name)
    needed, _ = cls._get_signature_keys(cls)
    optional = {*cls._optional_components} - {*parts.family.backbones}
    flaws = list(parts.problems(pretrained=pretrained, needed=[n for n in needed if n not in optional]))
    if flaws:
        raise PlanError("\n".join(f"model.source: {what} (got {model.source.name!r}); {advice}" for what, advice in flaws))
    takes = cls._get_signature_types()
    for part in (n for n in parts.family.beside if n in parts.named):
        if parts.named[part] not in (kinds := [k.__name__ for k in takes[part] if isinstance(k, type)]):
            raise PlanError(
                f"model.parts: its {part} is no {' or '.join(kinds)} (got a {parts.named[part]}); give one of {name}'s"
            )
    if pretrained and parts.variant and parts.variant != model.variant:
        log.info("model.source: its weights are there as the variant %s alone, which is read", parts.variant)
    if pretrained and (gone := [n for n in parts.left_out if parts.index.get(n, [None])[0]]):
        log.info("model.source: %s is not there, and left out: the pipeline does without", ", ".join(gone))


def _originals(out: Path, parts: Parts, backbones: Mapping[str, Any], model: LoadView) -> None:
    """Writes how parts are read that are in files under their makers' names, or in FP8. Raises PlanError for what is not in
    them."""
    import torch

    from diffopt.files.originals import OriginalsFile
    from diffopt.layouts.families import NAMES
    from diffopt.layouts.original import original
    from diffopt.pipeline.open import blank_part

    pipeline = config_of(parts.directory / INDEX)["_class_name"]
    known = [n for n in NAMES if n == model.family or (model.family == models.AUTO.name and models.family(n).opened(pipeline))]
    found, flaws = {}, []
    for name in parts.named:
        if files := parts.read_here(name):
            made = (
                backbones[name]
                if name in backbones
                else blank_part(parts.directory / name, parts.index[name], getattr(torch, model.dtype))
            )
            names = NAMES[known[0]] if known and name in backbones else None
            try:
                found[name] = original(files, name, parts.named, made, names)
            except ValueError as e:
                what, _, advice = str(e).partition("; ")
                flaws.append(f"model.source: {files[0].name} {what} (got {model.source.name!r}); {advice}")
                continue
            if codes := found[name].stored:
                log.info("model.source: %s is stored in %s: dequantized to %s", name, codes, model.dtype)
    if flaws:
        raise PlanError("\n".join(flaws))
    if found:
        OriginalsFile(found).write(out)


def _adapters(
    ctx: Context, model: LoadView, directory: Path, classes: Mapping[str, str], modules: Mapping[str, "torch.nn.Module"]
) -> tuple[FusedAdapter, ...]:
    """What is pinned of the adapters; writes which layers each hits. `modules` are the backbones, without their weights."""
    from diffopt.pipeline import lora

    family, there = models.of(model), dict(modules)
    if not family.lora:  # of one that was found just now: of the others the plan says so
        name = model.lora[0].path.name
        raise PlanError(f"model.lora: diffusers has no LoRA loader for {family.pipeline} (got {name!r}); drop it")
    texts = [name for name in lora.components(family) if name in classes and name not in modules]
    if model.weights != "random":
        there |= {name: lora.text_encoder(directory / name, classes[name]) for name in texts}
    rows, all_hits = [], []
    for i, adapter in enumerate(model.lora):
        where = f"model.lora.{i}"
        if adapter.backbone is not None and adapter.backbone not in modules:
            raise PlanError(
                f"{where}.backbone: the model has no such backbone (got {adapter.backbone!r}); "
                + suggestion(adapter.backbone, modules)
            )
        digest = ctx.digest(adapter.path)
        absent = [name for name in texts if name not in there]
        match = lora.matched(adapter, ctx.locate(digest), family, there, absent, where)
        if match.idle:
            log.info("%s: %d keys are left out, and would change nothing: %s", where, len(match.idle), ", ".join(match.idle))
        all_hits.append(match.hits)
        hits = {component: len(names) for component, names in match.hits.layers.items()}
        rows.append(FusedAdapter(adapter.path.name, digest, adapter.scale, adapter.backbone, hits, tuple(match.idle)))
    write_hits(ctx.out, all_hits)
    return tuple(rows)
