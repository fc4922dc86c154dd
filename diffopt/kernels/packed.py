"""A backbone with kernels as a directory: its config, its tensors in safetensors, and which kernels there are."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict

from diffopt.files.native import NativeFile
from diffopt.kernels.kernel import Kernel

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def kernels(backbone: torch.nn.Module) -> dict[str, str]:
    """By name, the kind of every kernel in it."""
    return {name: module.kind for name, module in backbone.named_modules() if isinstance(module, Kernel)}


def size(backbone: torch.nn.Module) -> int:
    """Bytes of all tensors that are saved."""
    return sum(x.nbytes for x in backbone.state_dict().values())


def save(folder: Path, backbone: Any, head: NativeFile, shard: str) -> None:
    """Write a backbone of diffusers that `convert` has put kernels into.

    Tensors that are too many for a file of `shard` (`10GB`) are written to several, each read from the device as it is
    written, with an index as diffusers and transformers write it.
    """
    config = json.loads(backbone.to_json_string())
    config.pop("_name_or_path", None)  # a path of the machine that made it
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_torch_state_dict(_apart(backbone.state_dict()), folder, max_shard_size=shard)
    head.write(folder)


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that share memory, which a file cannot say, each with its own."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.detach().clone() if place in seen else tensor.detach().contiguous()
        seen.add(place)
    return found
