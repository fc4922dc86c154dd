"""`layers.json`: the layers of a pipeline's backbones that formats can quantize, in the model's order."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffopt.files.json_file import plain, typed

NAME = "layers.json"


@dataclass(frozen=True)
class Layer:
    name: str
    kind: Literal["linear", "convolution", "attention"]
    shape: tuple[int, ...]
    """Of the weight, [out, in] or [out, in, height, width]; of attention, [heads, channels of a head]."""


def read_layers(folder: Path) -> tuple[Layer, ...]:
    """Of a Pipeline's directory."""
    return typed(tuple[Layer, ...], json.loads((folder / NAME).read_text()))


def write_layers(folder: Path, layers: Iterable[Layer]) -> None:
    (folder / NAME).write_text(json.dumps([plain(layer) for layer in layers], indent=1))
