"""What one call of a model takes of memory beside its weights, for models whose configs are known. Imports no torch.

`activations.json` beside it has it for the models of conf/, as `python tests/activations.py` measured it on the meta device
(diffopt/pipeline/activations.py): there is nothing else in it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from diffopt.models.family import Json, Size
from diffopt.store.fingerprint import fingerprint

TABLE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Growth:
    """Bytes that grow with the size of a call."""

    by_frame: float
    """For each pixel of each frame."""
    by_picture: float
    """For each pixel, however many frames."""
    by_token: float
    """For each token of text."""
    fixed: float

    def at(self, size: Size) -> float:
        pixels = size.height * size.width
        return pixels * (size.frames * self.by_frame + self.by_picture) + size.text * self.by_token + self.fixed


@dataclass(frozen=True)
class Call:
    """What is alive at most while a call runs, its inputs and what it gives included."""

    each: Growth
    """For each row."""
    shared: Growth
    """Whatever the rows, as tables of positions are."""

    def at(self, size: Size) -> int:
        """Bytes of a call of this size."""
        return max(0, round(size.batch * self.each.at(size) + self.shared.at(size)))


@dataclass(frozen=True)
class Anatomy:
    """Of a pipeline's backbone and VAE."""

    parameters: int
    """Of one backbone, of which a pipeline may have several alike."""
    vae: int
    """Parameters of the VAE."""
    call: Mapping[int, Call]
    """Of the backbone, by bytes of a number: 2 or 4."""
    decode: Mapping[int, Call]
    """Of the VAE's decoder."""
    kept: Mapping[int, Call]
    """Of the backbone, what the gradient needs of a call of which no block is made once more."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Anatomy":
        """Of a row of the table."""
        calls = {n: {int(k): _call(x) for k, x in row[n].items()} for n in ("call", "decode", "kept")}
        return cls(row["parameters"], row["vae"], **calls)


def _call(row: Sequence[Sequence[float]]) -> Call:
    each, shared = row
    return Call(Growth(*each), Growth(*shared))


def key(family: str, backbone: Json, vae: Json) -> str:
    """What a model is found by: its family, which may give a backbone more inputs, and its configs without what they say of
    files and versions."""
    return fingerprint({"family": family, "backbone": _plain(backbone), "vae": _plain(vae)})


def _plain(config: Json) -> dict[str, Any]:
    return {n: x for n, x in config.items() if not n.startswith("_") or n == "_class_name"}


@cache
def _table() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


def known(family: str, backbone: Json, vae: Json) -> Anatomy | None:
    """None for a model that is in no option of conf/."""
    row = _table().get(key(family, backbone, vae))
    return Anatomy.of(row) if row else None
