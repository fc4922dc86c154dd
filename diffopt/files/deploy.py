"""`deploy.json`: what of a checkpoint in the layout of another program is quantized, and what it takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from diffopt.files.json_file import JsonFile


@dataclass(frozen=True, kw_only=True)
class DeployFile(JsonFile):
    NAME = "deploy.json"
    SCHEMA: ClassVar[str | None] = "diffopt.deploy/1"

    layout: str
    """`huggingface`, `comfyui`, `svdquant` or `nunchaku`."""
    family: str
    format: str
    backbones: tuple[str, ...]
    """Each has a folder of its own, or a file."""
    source: str
    """The digest of the pipeline's files."""
    weights: str
    dtype: str
    """Precision of what is not quantized."""
    layers: Mapping[str, str]
    """By name in diffusers the format of the quantized layers; of several backbones with the backbone's name before."""
    share_scales: bool
    """Whether q, k and v have the same scales, as readers that fuse them take them."""
    bytes: int
    """Of all tensors."""
    components: Mapping[str, str] = field(default_factory=dict)
    """By name the format of text encoders that are beside them, their weights alone in fewer bits."""
    versions: Mapping[str, str]
    """Of the packages that made it."""
