"""`components.json`: parts beside the backbones whose weights are kept in fewer bits."""

from collections.abc import Mapping
from dataclasses import dataclass

from diffopt.files.json_file import JsonFile


@dataclass(frozen=True)
class Component:
    format: str
    layers: int
    """Linear layers whose weights are quantized."""
    bytes: int
    """Of its files of weights."""
    plain: int
    """Of its parameters in the model's precision."""


@dataclass(frozen=True)
class ComponentsFile(JsonFile):
    NAME = "components.json"

    parts: Mapping[str, Component]
    """By name in the pipeline; each has a folder of that name."""
    versions: Mapping[str, str]
    """Of the packages that made it."""
