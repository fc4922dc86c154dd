"""Wan 2.2 A14B, image to video: the picture's latents, and which frames they are of, are further channels of the noisy ones."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffopt.models import wan
from diffopt.models.family import Encode

if TYPE_CHECKING:
    import torch


def condition(encode: Encode, pictures: "Mapping[str, torch.Tensor]", model: Any) -> "torch.Tensor":
    """[b, 4 + channels, frames, h, w]: 1 in the first frame, and the latents of a video that is the picture, then grey."""
    import torch

    first = pictures["image"].float()[:, :, None] / 127.5 - 1
    b, channels, _, height, width = first.shape
    latents = encode(torch.cat([first, first.new_zeros(b, channels, model.frames - 1, height, width)], 2))
    mask = latents.new_zeros(b, wan.TIME, *latents.shape[2:])
    mask[:, :, 0] = 1
    return torch.cat([mask, latents], 1)


def joined(noisy: "torch.Tensor", condition: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.cat([noisy, condition.to(noisy)], 1)


def misfit(configs: Mapping[str, Any]) -> str | None:
    """Wan 2.1 has an image encoder besides, and the TI2V of 2.2 a timestep per patch: neither is this family."""
    own = configs.get("transformer", {})
    if own.get("image_dim"):
        return "its transformer takes an image encoder's states, as Wan 2.1's does, which this family does not give"
    if own and own.get("in_channels") == own.get("out_channels"):
        return "its transformer has no channels for the picture, as Wan 2.2 TI2V"
    return None


FAMILY = replace(
    wan.FAMILY,
    name="wan_i2v",
    pipeline="WanImageToVideoPipeline",
    pictures={"image": "image"},
    ours="wan_i2v_pipeline",
    misfit=misfit,
    original={},
    condition=condition,
    joined=joined,
)
