"""`originals.json`: how parts are read of files that have them under their makers' names, or as codes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from diffopt.files.json_file import JsonFile

Way = Literal["same", "makers", "diffusers", "open_clip"]


@dataclass(frozen=True)
class Original:
    way: Way
    """Whose names the file has: the model's own, its makers' by the table `names`, or such as diffusers has a converter for."""
    prefix: str = ""
    """Before every name of the part."""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By a tensor's name there those of the model that it is made of, one under the other."""
    turned: tuple[str, ...] = ()
    """Layers of the model whose halves have changed places there."""
    stored: str = ""
    """What its weights are in there, FP8 or a type of GGUF, where they are dequantized."""


@dataclass(frozen=True)
class OriginalsFile(JsonFile):
    NAME = "originals.json"

    parts: Mapping[str, Original]
    """By name in the pipeline."""
