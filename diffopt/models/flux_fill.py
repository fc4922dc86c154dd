"""FLUX.1 Fill: what a mask covers of a picture is drawn anew. The rest and the mask are further channels of each token."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffopt.models import flux, flux_kontext
from diffopt.models.family import Encode

if TYPE_CHECKING:
    import torch


def condition(encode: Encode, pictures: "Mapping[str, torch.Tensor]", model: Any) -> "torch.Tensor":
    """[b, tokens, 4 x (channels + scale x scale)]: latents of the picture without what the mask covers, and of the mask each
    pixel, as its pipeline makes them."""
    mask = (pictures["mask_image"] >= 128).float()
    latents = encode(flux_kontext.shown(pictures["image"]) * (1 - mask))
    b, _, rows, columns = latents.shape
    scale = mask.shape[2] // rows
    each = mask.reshape(b, rows, scale, columns, scale).permute(0, 2, 4, 1, 3).reshape(b, scale * scale, rows, columns)
    return joined(flux.packed(latents), flux.packed(each))


def joined(noisy: "torch.Tensor", condition: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.cat([noisy, condition.to(noisy)], 2)


FAMILY = replace(
    flux.FAMILY,
    name="flux_fill",
    pipeline="FluxFillPipeline",
    pictures={"image": "image", "mask": "mask_image"},
    original={},
    condition=condition,
    joined=joined,
)
