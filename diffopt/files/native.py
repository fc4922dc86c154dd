"""`native.json`: what of a packed backbone computes by which kernel, and what it takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from diffopt.files.json_file import JsonFile


@dataclass(frozen=True, kw_only=True)
class NativeFile(JsonFile):
    """Of several backbones each has one in its folder; that of the whole counts all, with the backbones' names before the
    layers'."""

    NAME = "native.json"
    SCHEMA: ClassVar[str | None] = "diffopt.native/1"

    family: str
    format: str
    backbones: tuple[str, ...]
    source: str
    """The digest of the pipeline's files."""
    weights: str
    dtype: str
    """Precision of what is not quantized."""
    layers: Mapping[str, str]
    """By name, the kind of kernel that computes."""
    fell_back: Mapping[str, str]
    """By name, the quantized layers that no kernel takes, and why: they have rounded weights in `dtype`."""
    bytes: int
    """Of all tensors, in the files as on a device."""
    bytes_in_16_bits: int
    """Of the plain model's parameters at two bytes each."""
    versions: Mapping[str, str]
    """Of the packages that made it."""
