"""`lora.json` of a pipeline with adapters: for each, by component, the layers that it must hit when it is fused."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

NAME = "lora.json"
Hits = Mapping[str, Sequence[str]]
"""By component, names of its layers."""


def read_hits(folder: Path) -> list[Hits]:
    """Of a Pipeline's directory."""
    return [row["layers"] for row in json.loads((folder / NAME).read_text())]


def write_hits(folder: Path, adapters: Sequence[Hits]) -> None:
    (folder / NAME).write_text(json.dumps([{"layers": hits} for hits in adapters], indent=1))
