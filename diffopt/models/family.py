"""What diffopt must know about a family of models; all else is read from the model itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Size:
    """The extent of one backbone call: batch in images, height and width in pixels, text in tokens."""

    batch: int
    height: int
    width: int
    text: int


@dataclass(frozen=True)
class Family:
    name: str
    pipeline: str
    """diffusers' pipeline class."""
    backbone: str
    """The pipeline's attribute that denoises, and the sub-folder it is stored in."""
    backbone_class: str
    blocks: tuple[str, ...]
    """The backbone's attributes that hold its repeated blocks."""
    keep: tuple[str, ...]
    """Modules, by name from the backbone's top, that stay in full precision in every format."""
    size_step: int
    """Height and width are multiples of this many pixels."""
    arguments: Callable[[Any], dict[str, Any]]
    """Pipeline arguments of one call, from an object with the fields of the group `model`."""
    inputs: Callable[[Any, int, Size], "dict[str, torch.Tensor]"]
    """Example backbone inputs by name, for a backbone, the pixels per latent of its VAE, and a size."""
