"""`lora.json` of a pipeline with adapters: for each, by component, the layers that it must hit when it is fused."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NAME = "lora.json"


@dataclass(frozen=True)
class Hits:
    """Of one adapter."""

    layers: Mapping[str, Sequence[str]]
    """By component, names of its layers."""
    alphas: Mapping[str, Mapping[str, float]]
    """By component and layer, the number that over the rank scales a product, where the file has such numbers."""


def read_hits(folder: Path) -> list[Hits]:
    """Of a Pipeline's directory."""
    return [Hits(row["layers"], row.get("alphas", {})) for row in json.loads((folder / NAME).read_text())]


def write_hits(folder: Path, adapters: Sequence[Hits]) -> None:
    rows = [{"layers": x.layers} | ({"alphas": x.alphas} if x.alphas else {}) for x in adapters]
    (folder / NAME).write_text(json.dumps(rows, indent=1))
