"""Adapters fused into what they were trained for, by diffusers' own loaders: checked by name, then nothing of them is left."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers.loaders import lora_base
from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from diffopt.artifact import Pipeline
from diffopt.errors import GateError, PlanError, pass_on
from diffopt.files.lora import Hits, read_hits
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.lora_file import HALVES, Adapter, Fit, fit
from diffopt.models import Family, of
from diffopt.pipeline.lora_keys import Account, Tensors, Traced, account, culprits, stem
from diffopt.stage import Context


def components(kind: Family) -> list[str]:
    """Parts of its pipeline that diffusers loads adapters into."""
    return list(getattr(diffusers, kind.pipeline)._lora_loadable_modules)


def text_encoder(directory: Path, name: str) -> torch.nn.Module:
    """A text encoder of class `name`, without its weights."""
    cls = getattr(transformers, name)
    with init_empty_weights():
        found: torch.nn.Module = cls(cls.config_class.from_pretrained(directory))
    return found


@dataclass(frozen=True)
class Match:
    """How an adapter meets a model."""

    hits: Hits
    idle: list[str]
    """Keys of its file that are left out and would change nothing."""


def matched(
    adapter: Adapter, path: Path, kind: Family, modules: Mapping[str, torch.nn.Module], absent: list[str], where: str
) -> Match:
    """Which layers an adapter changes. Computes nothing; `modules` may be without their weights.

    `absent` names components that the model has but not here. Raises PlanError for an adapter that does not fit, and for
    one of which a key would be left out that changes something.
    """
    tensors, name = load_file(path), adapter.path.name
    broken = [k for k, x in tensors.items() if not x.float().isfinite().all()]
    if broken:
        what = f"{len(broken)} of its {len(tensors)} tensors have values that are not finite, the first {broken[0]}"
        raise PlanError(f"{where}: {what} (got {name!r}); download it again, or give another adapter")
    found = _read(tensors, kind, modules, where, name)
    own = _for_backbone(found.state, kind, adapter.backbone)
    peft: Tensors = {}
    for component in dict.fromkeys(k.partition(".")[0] for k in own):
        peft |= {f"{component}.{k}": x for k, x in _peft(own, component, kind, modules.get(component)).items()}
    layers = {name: _weights(module) for name, module in modules.items()} | dict.fromkeys(absent)
    met = fit({k: tuple(x.shape) for k, x in peft.items()}, layers)
    strangers = {*found.lost} | {o for k in met.strangers if k in peft for o in Traced.origins(peft[k])}
    misfits = [*met.misfits, *_other_biases(peft, met.layers, modules)]
    named = Fit(met.layers, [k for k in tensors if k in strangers], misfits)
    if problem := named.problem(name, len(tensors)):
        raise PlanError(f"{where}: {problem}")
    if found.unscaled:
        raise PlanError(
            f"{where}: diffusers leaves out {len(found.unscaled)} of its alphas for {kind.name} and would fuse what they scale "
            f"too strongly or too weakly, the first {found.unscaled[0]} (got {name!r}); multiply each into its product by "
            "alpha / rank and take it out of the file"
        )
    return Match(Hits(met.layers, _alphas(peft, met.layers, found) if found.alphas else {}), found.idle)


def _read(tensors: Tensors, kind: Family, modules: Mapping[str, torch.nn.Module], where: str, name: str) -> Account:
    """An adapter's tensors in diffusers' layout. Raises PlanError where it cannot read them, naming those that it cannot."""

    def convert(given: Tensors) -> tuple[Tensors, dict[str, Any]]:
        return _converted(getattr(diffusers, kind.pipeline), given, modules)[:2]

    try:
        return account(tensors, convert)
    except Exception as e:  # its converters assert, index and compute their way through keys that they do not know
        pass_on(e)
        reason = (" ".join(str(e).split()) or type(e).__name__)[:160]
    bad = culprits(tensors, convert)
    what = f"diffusers cannot read it for {kind.name}: {reason}"
    if len(bad) < len(tensors):
        what = (
            f"diffusers cannot read {len(bad)} of its {len(tensors)} keys for {kind.name}, the first {bad[0]}" if bad else what
        )
    else:
        name = f"{name!r}: {len(tensors)} keys, the first {next(iter(tensors), None)}"
        raise PlanError(f"{where}: {what} (got {name}); give an adapter that was trained on this model")
    raise PlanError(
        f"{where}: {what} (got {name!r}); give an adapter that was trained on this model, or take them out of the file"
    )


def _other_biases(peft: Tensors, hit: Mapping[str, list[str]], modules: Mapping[str, torch.nn.Module]) -> Iterator[str]:
    """Layers whose bias cannot be added to: of another size, or not there in a component of which the adapter has biases."""
    for component in dict.fromkeys(k.partition(".")[0] for k in peft if k.endswith(".lora_B.bias")):
        for layer in hit.get(component, ()):
            there = modules[component].get_submodule(layer).bias
            given = peft.get(f"{component}.{layer}.lora_B.bias")
            if not isinstance(there, torch.Tensor):
                yield f"{component}.{layer}: a bias, in the model none"
            elif given is not None and given.shape != there.shape:
                yield f"{component}.{layer}: a bias of {given.numel()}, in the model {there.numel()}"


def _alphas(peft: Tensors, hit: Mapping[str, list[str]], found: Account) -> dict[str, dict[str, float]]:
    """By component and layer, the alpha that the file says; the rank, where it says none."""
    made: dict[str, dict[str, float]] = {}
    for component, layers in hit.items():
        for layer in layers:
            inner = peft[f"{component}.{layer}.lora_A.weight"]
            own = {found.alphas[s] for k in Traced.origins(inner) if (s := stem(k)) in found.alphas}
            made.setdefault(component, {})[layer] = own.pop() if len(own) == 1 else float(inner.shape[0])
    return made


def fuse(ctx: Context, pipeline: Pipeline, modules: Mapping[str, torch.nn.Module]) -> None:
    """Fuse the pinned adapters into those of the pipeline's components that are given, in place and where they lie.

    A layer's product is added to its weight, one layer at a time. Raises GateError where an adapter hits other layers
    than it was found to fit, or where one of its layers is left.
    """
    pinned = PipelineFile.read(pipeline.path)
    if not pinned.lora:
        return
    kind = of(pinned)
    scales: dict[str, dict[str, float]] = {}
    for i, (adapter, expected) in enumerate(zip(pinned.lora, read_hits(pipeline.path), strict=True)):
        here, name = [c for c in expected.layers if c in modules], f"lora_{i}"
        if not here:
            continue
        state, alphas, metadata = _converted(getattr(diffusers, kind.pipeline), str(ctx.locate(adapter.source)), modules)
        own = _for_backbone(state, kind, adapter.backbone)
        about = [_for_backbone(x or {}, kind, adapter.backbone) or None for x in (alphas, metadata)]
        for component in here:
            with _told(adapter.name, component):
                _load(getattr(diffusers, kind.pipeline), modules[component], component, own, *about, name=name)
            hit = {n: m for n, m in modules[component].named_modules() if name in getattr(m, "scaling", {})}
            if {*hit} != (wanted := {*expected.layers[component]}):
                raise GateError(
                    f"lora: {adapter.name} hits {len(hit)} layers of {component}, but fits {len(wanted)} "
                    f"(got {min({*hit} ^ wanted)} otherwise); report it"
                )
            for layer, alpha in expected.alphas.get(component, {}).items():  # diffusers mixes up those that differ
                hit[layer].lora_alpha[name] = alpha
            scales.setdefault(component, {})[name] = adapter.scale
    for component, scaled in scales.items():
        with _told(", ".join(x.name for x in pinned.lora), component):
            _merge(modules[component], scaled)
        check(modules[component], component)


@contextmanager
def _told(name: str, component: str) -> Iterator[None]:
    """Raises GateError for whatever diffusers and peft raise of an adapter that was found to fit."""
    try:
        yield
    except Exception as e:
        pass_on(e)
        reason = (" ".join(str(e).split()) or type(e).__name__)[:160]
        raise GateError(f"lora: diffusers cannot fuse it into {component}: {reason} (got {name}); report it") from e


def check(module: torch.nn.Module, component: str) -> None:
    """Raises GateError where a LoRA layer is left: it would be quantized beside the layer that it belongs to."""
    left = [n for n, m in module.named_modules() if isinstance(m, BaseTunerLayer) or n.endswith((*HALVES, "base_layer"))]
    if left:
        raise GateError(f"lora: {len(left)} LoRA layers of {component} are left unfused (got {left[0]} ...); report it")


def _merge(module: torch.nn.Module, scales: Mapping[str, float]) -> None:
    names, weights = list(scales), list(scales.values())
    model: Any = module
    if isinstance(module, diffusers.ModelMixin):
        model.set_adapters(names, weights)
        model.fuse_lora(adapter_names=names)
        model.unload_lora()
    else:
        lora_base.set_adapters_for_text_encoder(names, model, weights)
        lora_base.fuse_text_encoder_lora(model, adapter_names=names)
        recurse_remove_peft_layers(model)
        del model.peft_config
        model._hf_peft_config_loaded = False
    model.requires_grad_(True)  # as from_pretrained gives it; injection has frozen the weights


def _load(cls: Any, module: Any, component: str, state: Tensors, alphas: Any, metadata: Any, *, name: str) -> None:
    """Put an adapter's layers beside those of one component."""
    how = {"network_alphas": alphas, "metadata": metadata, "adapter_name": name, "low_cpu_mem_usage": True}
    if isinstance(module, diffusers.ModelMixin):
        model: Any = module
        model.load_lora_adapter(state, prefix=component, **how)
    else:
        cls.load_lora_into_text_encoder(state, text_encoder=module, prefix=component, **how)


def _converted(cls: Any, given: Any, modules: Mapping[str, torch.nn.Module]) -> tuple[Tensors, dict[str, Any], Any]:
    """An adapter's tensors in diffusers' layout, alphas that are not in them yet, and its metadata.

    `given` is its file, or its tensors.
    """
    more: dict[str, Any] = {"return_alphas": True} if "return_alphas" in signature(cls.lora_state_dict).parameters else {}
    if issubclass(cls, StableDiffusionXLLoraLoaderMixin) and "unet" in modules:  # it numbers the blocks by the UNet's depth
        more["unet_config"] = modules["unet"].config
    state, *alphas, metadata = cls.lora_state_dict(given, return_lora_metadata=True, **more)
    return state, (alphas[0] if alphas else None) or {}, metadata


def _for_backbone(state: Mapping[str, Any], kind: Family, backbone: str | None) -> dict[str, Any]:
    """The same for the backbone that the adapter is meant for: diffusers' layout knows the first one's name alone."""
    first = kind.backbones[0]
    prefix = f"{backbone or first}."
    return {prefix + k.removeprefix(f"{first}.") if k.startswith(f"{first}.") else k: x for k, x in state.items()}


def _peft(state: Tensors, component: str, kind: Family, module: torch.nn.Module | None) -> Tensors:
    """One component's part of the state, in peft's names of the halves, as diffusers brings it there while loading."""
    own = {k.removeprefix(f"{component}."): x for k, x in state.items() if k.startswith(f"{component}.")}
    if component in kind.backbones:
        return own if "lora_A" in next(iter(own)) else convert_unet_state_dict_to_peft(own)
    try:
        own = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own))
    except ValueError:  # a layout that is none of a text encoder's: its keys match nothing
        return own
    return own if hasattr(module, "text_model") else {k.removeprefix("text_model."): x for k, x in own.items()}


def _weights(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Sizes of the weights that an adapter can change, by layer."""
    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    return {n: tuple(m.weight.shape) for n, m in module.named_modules() if isinstance(m, kinds)}
