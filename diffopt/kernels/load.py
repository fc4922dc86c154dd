"""A packed backbone from its directory, straight into the precision that it computes in."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open

from diffopt import __version__
from diffopt.errors import ConfigError, PlanError, SourceError, StoreError
from diffopt.files.native import NativeFile
from diffopt.kernels.capability import shortfall
from diffopt.kernels.fuse import fuse
from diffopt.kernels.kinds import KINDS
from diffopt.kernels.packed import CONFIG, INDEX, WEIGHTS
from diffopt.pipeline.open import default_dtype

Tensors = dict[str, torch.Tensor]
LINE = 64
"""Bytes of a cache line."""


def load(directory: Path, device: torch.device, dtype: torch.dtype | None) -> Any:
    """As `diffopt.load`."""
    head = _head(directory)
    if dtype is not None and dtype != getattr(torch, head.dtype):
        asked = str(dtype).removeprefix("torch.")
        raise ConfigError(
            f"diffopt.load: what is not quantized is in {head.dtype} (got dtype {asked}); leave dtype out, or pack a model of "
            f"model.dtype={asked}"
        )
    _check(directory, head, device)
    if len(head.backbones) > 1:
        return {name: load(directory / name, device, dtype) for name in head.backbones}
    model = _empty(directory, head)
    tensors = _tensors(directory, device)
    for name, kind in head.layers.items():
        _put(directory, model, name, kind, tensors)
    _fill(directory, model, tensors)
    # What is in no file is made by the model's class: tables that follow from its config.
    model = model.to(device).eval()
    if device.type == "cuda":
        fuse(model)
    return model


def _head(directory: Path) -> NativeFile:
    path = directory / NativeFile.NAME
    if not path.is_file():
        raise SourceError(
            f"diffopt.load: is no packed backbone: it has no {NativeFile.NAME} (got {str(directory)!r}); give a directory that "
            "export=native has made"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.get("schema")
        if found != NativeFile.SCHEMA:
            raise SourceError(
                f"diffopt.load: {path} is of a form that diffopt {__version__} does not read (got {found!r}); "
                "update diffopt, or pack the model again"
            )
        return NativeFile.of(content)
    except (ValueError, AttributeError, OSError, StoreError) as e:
        raise _unreadable(path, e) from None


def _check(directory: Path, head: NativeFile, device: torch.device) -> None:
    """Raises for kinds of kernels that this diffopt does not have, or the GPU."""
    for name, kind in head.layers.items():
        if kind not in KINDS:
            raise SourceError(
                f"diffopt.load: diffopt {__version__} has no kernel of the kind that {name} is packed for (got {kind!r} in "
                f"{str(directory)!r}); update diffopt"
            )
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise PlanError(f"diffopt.load: torch sees no NVIDIA GPU here (got device {str(device)!r}); give device='cpu'")
        name, there = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        for kind in sorted({*head.layers.values()}):
            if reason := shortfall(kind, name, there):
                raise PlanError(f"diffopt.load: {kind} {reason}; use a newer GPU, or device='cpu', which is slow")


def _empty(directory: Path, head: NativeFile) -> Any:
    """The module of diffusers with no memory for its parameters."""
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        cls = getattr(diffusers, config["_class_name"])
        with default_dtype(getattr(torch, head.dtype)), init_empty_weights():
            return cls.from_config(config)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as e:
        raise _unreadable(directory / CONFIG, e) from None


def _tensors(directory: Path, device: torch.device) -> dict[str, Tensors]:
    """On the device, by the module that they belong to and their name in it."""
    index, found = directory / INDEX, defaultdict[str, Tensors](dict)
    path = index
    try:
        files = {*json.loads(index.read_text())["weight_map"].values()} if index.is_file() else {WEIGHTS}
        for file in sorted(files):
            path = directory / file
            with safe_open(path, framework="pt", device=str(device)) as opened:
                for key in opened.keys():  # noqa: SIM118
                    module, _, name = key.rpartition(".")
                    found[module][name] = _aligned(opened.get_tensor(key))
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        raise _unreadable(path, e) from None
    return found


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """A tensor of a mapped file may lie anywhere, and a CPU's sums have other last bits where it does not begin a line of its
    cache, as torch's own tensors do."""
    return x if x.is_cuda or x.data_ptr() % LINE == 0 else x.clone()


def _put(directory: Path, model: torch.nn.Module, name: str, kind: str, tensors: dict[str, Tensors]) -> None:
    cls = KINDS[kind]
    try:
        layer = None if cls.adds else model.get_submodule(name)
        cls.of(layer, tensors.pop(name, {})).put(model, name)
    except (ValueError, AttributeError) as e:
        raise _unreadable(directory / WEIGHTS, f"{name}: {e}") from None


def _fill(directory: Path, model: torch.nn.Module, tensors: Mapping[str, Tensors]) -> None:
    """Give the layers without kernels their own tensors."""
    plain = {f"{m}.{n}" if m else n: x for m, own in tensors.items() for n, x in own.items()}
    own = {n: x for n, x in model.state_dict().items() if n.rpartition(".")[0] not in _filled(model)}
    for problem, names in (("lacks", {*own} - {*plain}), ("has no place for", {*plain} - {*own})):
        if names:
            raise _unreadable(directory / WEIGHTS, f"{problem} {min(names)}")
    try:
        model.load_state_dict(plain, strict=False, assign=True)
    except RuntimeError as e:  # of another shape
        raise _unreadable(directory / WEIGHTS, str(e).strip().splitlines()[-1].strip()) from None


def _filled(model: torch.nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if type(module) in KINDS.values()}


def _unreadable(path: Path, why: Exception | str) -> SourceError:
    reason = (str(why).strip().splitlines() or [type(why).__name__])[0][:200]
    return SourceError(f"diffopt.load: {path.name} cannot be read: {reason} (got {str(path.parent)!r}); copy or pack it again")
