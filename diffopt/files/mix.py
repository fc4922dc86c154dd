"""`mix.json`: a format for every layer, within a budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from diffopt.files.json_file import JsonFile


@dataclass(frozen=True)
class MixedLayer:
    name: str
    kind: Literal["linear", "convolution", "attention"]
    format: str
    weights: int
    error: float
    """Squared, relative to its output."""


@dataclass(frozen=True)
class UniformMix:
    """One format on every layer that it can take."""

    error: float
    bits: float
    time: float | None
    fits: bool
    """Whether it keeps the budget."""


@dataclass(frozen=True)
class MixFile(JsonFile):
    NAME = "mix.json"
    SCHEMA = "diffopt.mix/1"

    layers: tuple[MixedLayer, ...]
    error: float
    """The sum of the layers'."""
    bits: float
    """Per weight."""
    time: float | None
    """Estimated share of the products' time in 16 bits, where a GPU was named."""
    bytes: int
    """Of all these weights."""
    plain_bytes: int
    """Of the same in the model's precision."""
    gpu: str | None
    budget: Mapping[str, float | str | None]
    """As the recipe has it."""
    uniform: Mapping[str, UniformMix]
    """By format."""
