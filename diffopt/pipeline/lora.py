"""Adapters fused into what they were trained for, by diffusers' own loaders: checked by name, then nothing of them is left."""

from collections.abc import Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

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
from diffopt.errors import GateError, PlanError
from diffopt.files.lora import read_hits
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.lora_file import HALVES, Adapter, Fit, fit
from diffopt.models import Family, family
from diffopt.stage import Context

INNER = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", ".lora_linear_layer.down.weight")
ENDS = (*INNER, ".lora_up.weight", ".lora_B.weight", ".lora.up.weight", ".lora_linear_layer.up.weight", ".alpha")
"""Of keys: the half of a product that is never zero when training begins, and all there are."""
Tensors = dict[str, torch.Tensor]


def components(kind: Family) -> list[str]:
    """Parts of its pipeline that diffusers loads adapters into."""
    return list(getattr(diffusers, kind.pipeline)._lora_loadable_modules)


def text_encoder(directory: Path, name: str) -> torch.nn.Module:
    """A text encoder of class `name`, without its weights."""
    cls = getattr(transformers, name)
    with init_empty_weights():
        found: torch.nn.Module = cls(cls.config_class.from_pretrained(directory))
    return found


def matched(
    adapter: Adapter, path: Path, kind: Family, modules: Mapping[str, torch.nn.Module], absent: list[str], where: str
) -> dict[str, list[str]]:
    """By component, the layers that an adapter changes. Computes nothing; `modules` may be without their weights.

    `absent` names components that the model has but not here. Raises PlanError for an adapter that does not fit.
    """
    pipeline = getattr(diffusers, kind.pipeline)
    tensors: Tensors = {key: _Traced.of(x, key) for key, x in load_file(path).items()}
    try:
        state, alphas, _ = _converted(pipeline, tensors, modules)
    except (ValueError, LookupError, AttributeError, RuntimeError) as e:  # how its converters fail on keys they do not know
        reason = (" ".join(str(e).split()) or type(e).__name__)[:160]
        raise PlanError(
            f"{where}: diffusers cannot read it for {kind.name}: {reason} (got {adapter.path.name!r}); "
            "give an adapter that was trained on this model"
        ) from None
    own = _for_backbone(state, kind, adapter.backbone)
    peft: Tensors = {}
    for component in dict.fromkeys(k.partition(".")[0] for k in own):
        peft |= {f"{component}.{k}": x for k, x in _peft(own, component, kind, modules.get(component)).items()}
    layers = {name: _weights(module) for name, module in modules.items()} | dict.fromkeys(absent)
    found = fit({k: tuple(x.shape) for k, x in peft.items()}, layers)
    strangers = {o for k in found.strangers if k in peft for o in _Traced.origins(peft[k])}
    strangers |= _dropped(tensors, [*own.values(), *alphas.values()], [*own, *alphas])
    named = Fit(found.layers, [k for k in tensors if k in strangers], found.misfits)
    if problem := named.problem(adapter.path.name, len(tensors)):
        raise PlanError(f"{where}: {problem}")
    return found.layers


def fuse(ctx: Context, pipeline: Pipeline, modules: Mapping[str, torch.nn.Module]) -> None:
    """Fuse the pinned adapters into those of the pipeline's components that are given, in place and where they lie.

    A layer's product is added to its weight, one layer at a time. Raises GateError where an adapter hits other layers
    than it was found to fit, or where one of its layers is left.
    """
    pinned = PipelineFile.read(pipeline.path)
    if not pinned.lora:
        return
    kind = family(pinned.family)
    scales: dict[str, dict[str, float]] = {}
    for i, (adapter, expected) in enumerate(zip(pinned.lora, read_hits(pipeline.path), strict=True)):
        here = [c for c in expected if c in modules]
        if not here:
            continue
        state, alphas, metadata = _converted(getattr(diffusers, kind.pipeline), str(ctx.locate(adapter.source)), modules)
        own = _for_backbone(state, kind, adapter.backbone)
        about = [_for_backbone(x or {}, kind, adapter.backbone) or None for x in (alphas, metadata)]
        for component in here:
            _load(getattr(diffusers, kind.pipeline), modules[component], component, own, *about, name=f"lora_{i}")
            hit = {n for n, m in modules[component].named_modules() if f"lora_{i}" in getattr(m, "scaling", {})}
            if hit != (wanted := {*expected[component]}):
                raise GateError(
                    f"lora: {adapter.name} hits {len(hit)} layers of {component}, but fits {len(wanted)} "
                    f"(got {min(hit ^ wanted)} otherwise); report it"
                )
            scales.setdefault(component, {})[f"lora_{i}"] = adapter.scale
    for component, scaled in scales.items():
        _merge(modules[component], scaled)
        check(modules[component], component)


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


def _dropped(tensors: Tensors, made: list[Any], names: list[str]) -> set[str]:
    """Keys of which nothing was made, but for those that would change nothing: a product with a half of zeros.

    An alpha is a number in the end; it goes with the product that it scales.
    """
    used = {k for x in made for k in _Traced.origins(x)} | {*names}
    stems = {_stem(k) for k in used}
    lost = {k for k in tensors if k not in used and not (k.endswith(".alpha") and _stem(k) in stems)}
    idle = {_stem(k) for k in lost if not k.endswith((*INNER, ".alpha")) and not tensors[k].any()}
    acting = {_stem(k) for k in lost if not k.endswith((*INNER, ".alpha")) and tensors[k].any()}
    return {k for k in lost if _stem(k) not in idle - acting}


def _stem(key: str) -> str:
    """The layer's name in a key, in any layout."""
    return next((key.removesuffix(end) for end in ENDS if key.endswith(end)), key)


class _Traced(torch.Tensor):
    """A tensor that knows of which keys of a file it was made: loaders rename, split, join and scale what they read."""

    keys: frozenset[str]
    _none: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def of(cls, x: torch.Tensor, key: str) -> "_Traced":
        traced = x.as_subclass(cls)
        traced.keys = frozenset({key})
        return traced

    @classmethod
    def origins(cls, x: Any) -> frozenset[str]:
        return getattr(x, "keys", cls._none) if isinstance(x, cls) else cls._none

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        found = cls._none.union(*(cls.origins(x) for x in _leaves((args, kwargs or {}))))
        for x in _leaves(out):
            if isinstance(x, cls):
                x.keys = found
        return out


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, dict):
        yield from _leaves([*value.values()])
    else:
        yield value
