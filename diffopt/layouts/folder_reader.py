"""A folder in the layout of Model-Optimizer's unified checkpoint, as `export=huggingface` writes it."""

import json
from pathlib import Path
from typing import Any

import torch

from diffopt.groups import quantized_source
from diffopt.layouts.names import Names
from diffopt.layouts.read import Read, opened, sorted_out

SCALES = ("weight_scale", "weight_scale_2", "input_scale")
CODES = (torch.float8_e4m3fn, torch.uint8, torch.int8)


def read(path: Path, backbone: Any, names: Names | None) -> Read:
    """In the layout of Model-Optimizer's unified checkpoint."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if (found := config.get("_class_name")) != type(backbone).__name__:
        raise ValueError(f"{path.name} is a {found}, and the model's is a {type(backbone).__name__}")
    named = quantized_source.formats_of(config["quantization_config"])
    there = opened(sorted(path.glob("*.safetensors")))
    scaled = {n.rpartition(".")[0] for n, x in there.items() if n.rpartition(".")[2] in SCALES or x.dtype in CODES}
    formats = dict.fromkeys(scaled, named[""]) if "" in named else {n: named.get(n, "") for n in scaled} | named
    if strange := sorted(n for n, f in formats.items() if not f):
        raise ValueError(f"{strange[0]} is quantized, and its config names no format for it")
    return sorted_out(there, formats)
