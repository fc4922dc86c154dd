"""`pipeline.json`: a pinned source, its family and classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from diffopt.files.found import Found
from diffopt.files.json_file import JsonFile


@dataclass(frozen=True)
class FusedAdapter:
    """A LoRA adapter that is fused when the pipeline is opened."""

    name: str
    """Its file, as the user has named it."""
    source: str
    """Its digest."""
    scale: float
    backbone: str | None
    """Of several, the one that it is for; None is the first."""
    hits: Mapping[str, int]
    """By component, how many layers it changes."""
    idle: tuple[str, ...] = ()
    """Keys of its file that are left out and would change nothing."""


@dataclass(frozen=True)
class PipelineFile(JsonFile):
    NAME = "pipeline.json"

    source: str
    """The digest of the pipeline's files."""
    family: str
    weights: Literal["pretrained", "random"]
    dtype: str
    scheduler: str | None
    """A class of diffusers in the place of the source's own."""
    components: Mapping[str, str]
    """Class by name."""
    backbones: tuple[str, ...]
    parameters: int
    """Of all backbones."""
    blocks: Mapping[str, int]
    """How many blocks the first backbone has in each of its lists."""
    largest: int | None
    """Most pixels of a side."""
    size_step: int
    """Pixels that a side is a multiple of."""
    variant: str | None = None
    """Of the weights that are read as *.VARIANT.*, where the parts have it; None are plain ones."""
    lora: tuple[FusedAdapter, ...] = ()
    found: Found | None = None
    """What the family is, where it is `auto`."""
