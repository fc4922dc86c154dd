"""A state as files that hold no code: its numbers and texts in JSON, its tensors in safetensors.

What torch.save writes is a pickle, which runs what it was told to when it is read; a store may lie where others write.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from diffopt.errors import pass_on

MOST = 2 << 30
"""Bytes of a file: so many of a GPU's are in RAM at a time while it is written."""
PACKED = "OptimState8bit"
"""torchao's tensor of codes and scales, the only one of its own class that is known."""


def write(folder: Path, name: str, state: Mapping[str, Any]) -> list[Path]:
    """`NAME.json` and `NAME.0.safetensors` ...; the files. Raises TypeError for what is more than numbers and tensors."""
    tensors: list[torch.Tensor] = []
    tree = _plain(dict(state), tensors)
    files: list[Path] = []
    part: dict[str, torch.Tensor] = {}
    size = 0
    for number, x in enumerate(tensors):
        part[str(number)] = x.detach().to("cpu", copy=True).contiguous()  # a copy: two that share memory are not written
        size += x.numel() * x.element_size()
        if size >= MOST or number + 1 == len(tensors):
            files.append(folder / f"{name}.{len(files)}.safetensors")
            save_file(part, files[-1])
            part, size = {}, 0
    head = folder / f"{name}.json"
    head.write_text(json.dumps({"files": len(files), "state": tree}), encoding="utf-8")
    return [head, *files]


def read(folder: Path, name: str) -> dict[str, Any]:
    """What `write` was given, on the CPU. Raises OSError and ValueError for files that it did not write."""
    try:
        head = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        tensors: dict[str, torch.Tensor] = {}
        for number in range(head["files"]):
            tensors |= load_file(folder / f"{name}.{number}.safetensors")
        found: dict[str, Any] = _whole(head["state"], tensors)
        return dict(found)
    except OSError:
        raise
    except Exception as e:  # whatever a file of strangers makes of the parsers
        pass_on(e)
        raise ValueError(f"{name} cannot be read ({type(e).__name__}: {e})") from None


def _plain(value: Any, tensors: list[torch.Tensor]) -> Any:
    """As JSON has it; a dict's keys may be numbers."""
    if isinstance(value, torch.Tensor):
        if type(value).__name__ == PACKED:
            packed: Any = value
            names, about = packed.__tensor_flatten__()
            inner = {n: _plain(getattr(value, n), tensors) for n in names}
            return {"packed": inner, "about": [_plain(x, tensors) for x in about]}
        tensors.append(value)
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(value, Mapping):
        return {"dict": [[_plain(k, tensors), _plain(x, tensors)] for k, x in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_plain(x, tensors) for x in value]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} is no state")


def _whole(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "packed" in tree:
        from torchao.optim.subclass_8bit import OptimState8bit

        inner = {n: _whole(x, tensors) for n, x in tree["packed"].items()}
        return OptimState8bit.__tensor_unflatten__(inner, [_whole(x, tensors) for x in tree["about"]])
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dtype":
        found = getattr(torch, value)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"{value!r} is no precision")
        return found
    if kind == "dict":
        return {_whole(k, tensors): _whole(x, tensors) for k, x in value}
    return {"list": list, "tuple": tuple}[kind](_whole(x, tensors) for x in value)
