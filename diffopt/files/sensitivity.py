"""`sensitivity.json`: how far each layer's output is off in each format, denoising step by step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from diffopt.files.json_file import JsonFile


@dataclass(frozen=True)
class SensedLayer:
    name: str
    kind: Literal["linear", "convolution", "attention"]
    weights: int
    """Their number."""
    products: float
    """Multiply-accumulates per picture and denoising step."""
    energy: Sequence[float]
    """Sum of the squares of its full-precision outputs, for every denoising step."""
    error: Mapping[str, Sequence[float]]
    """By format, and by what else was tried, the same of the difference that it makes: over `energy`, the relative error
    squared."""


@dataclass(frozen=True)
class SensitivityFile(JsonFile):
    NAME = "sensitivity.json"
    SCHEMA = "diffopt.sensitivity/1"
    INDENT = None

    formats: Sequence[str]
    prompts: int
    """Over which is summed."""
    steps: int
    alpha: float | None
    """Of SmoothQuant, where a format takes it."""
    layers: tuple[SensedLayer, ...]
    """In the model's order."""
    options: Sequence[str] = ()
    """What else was tried: `FORMAT FIELD=VALUE`, one field of `format` otherwise."""
