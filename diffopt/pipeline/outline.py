"""What a pipeline's configs and its weights' headers tell of it, before anything of it is opened. Imports no torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from diffopt import models
from diffopt.files.layers import Layer
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.lora_file import Shapes
from diffopt.groups.model import Model
from diffopt.models.family import Json
from diffopt.models.parts import Parts
from diffopt.store.files import json_object
from diffopt.store.tensor_file import tensors

KEYS = {
    "transformer_blocks": "num_layers",
    "blocks": "num_layers",
    "layers": "n_layers",
    "noise_refiner": "n_refiner_layers",
    "context_refiner": "n_refiner_layers",
    "single_transformer_blocks": "num_single_layers",
    "down_blocks": "down_block_types",
    "up_blocks": "up_block_types",
}
"""The field of a backbone's config that counts each list of blocks, or names them one by one."""


@dataclass(frozen=True)
class Outline:
    pinned: PipelineFile
    """As `load` will write it, but for adapters; `parameters` is 0 where no header tells them."""
    layers: tuple[Layer, ...]
    """Linear layers and convolutions by the weights' headers, without attention; none where no header tells them."""


ODD = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What a rule raises over a config that has not the fields, or fields of another type. `load` says so in words."""


def outline(directory: Path, model: Model) -> Outline | None:
    """Of the pipeline in `directory`; None where its configs do not tell, which is left to `load` to judge."""
    index, family = _json(directory / "model_index.json"), models.of(model)
    if family.name == models.AUTO.name:  # which `load` finds out
        return None
    backbones = [name for name in family.backbones if isinstance(index.get(name), list) and index[name][0]]
    names = backbones or list(family.backbones[:1])
    configs, vae = {n: _json(directory / n / "config.json") for n in names}, _json(directory / "vae" / "config.json")
    if not vae or not all(configs.values()):
        return None
    first = next(iter(configs.values()))
    parts = Parts(directory, family, model.variant)
    headers = {n: _shapes(parts.weights(n)) for n in names} if model.weights == "pretrained" else {}
    known = bool(headers) and all(headers.values())
    try:
        pinned = PipelineFile(
            source="",
            family=model.family,
            weights=model.weights,
            dtype=model.dtype,
            scheduler=model.scheduler,
            components={k: v[1] for k, v in index.items() if isinstance(v, list) and v[0]},
            backbones=tuple(names),
            parameters=sum(prod(x) for own in headers.values() for x in own.values()) if known else 0,
            blocks={name: _count(first[KEYS[name]]) for name in family.blocks},
            largest=family.largest(first),
            size_step=family.coarser(first, vae) or family.size_step,
            found=model.found,
        )
    except ODD:  # a field that an older config lacks, or of another type
        return None
    prefixed = {f"{n}." if len(names) > 1 else "": own for n, own in headers.items()} if known else {}
    return Outline(pinned, tuple(x for prefix, own in prefixed.items() for x in _layers(own, prefix)))


def _count(value: Any) -> int:
    return len(value) if isinstance(value, list) else int(value)


def _layers(own: Shapes, prefix: str) -> list[Layer]:
    kinds = {2: "linear", 4: "convolution"}
    weights = {k.removesuffix(".weight"): x for k, x in own.items() if k.endswith(".weight") and len(x) in kinds}
    return [Layer(prefix + name, kinds[len(x)], x) for name, x in weights.items()]  # type: ignore[arg-type]


def parameters(files: Iterable[Path]) -> int:
    """Numbers in a component's files, by their headers; 0 where one cannot be read."""
    return sum(prod(x) for x in _shapes(files).values())


def _shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Of the tensors in a component's files. Empty where one cannot be read, which is said where it is opened."""
    found: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            found |= {name: x.shape for name, x in tensors(path).items()}
        except (OSError, ValueError):
            return {}
    return found


def _json(path: Path) -> Json:
    """Empty for what is not there, or no object."""
    try:
        return json_object(path)
    except (OSError, ValueError):
        return {}
