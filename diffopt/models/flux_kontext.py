"""FLUX.1 Kontext: a picture edited by a text. Its latents stand behind the noisy ones in the sequence."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffopt.models import flux
from diffopt.models.family import Encode, Json, Size

if TYPE_CHECKING:
    import torch


def arguments(model: Any) -> dict[str, Any]:
    """The pipeline would draw about max_area pixels, and resize the picture to one of 17 sizes of about 1024x1024 pixels."""
    return {**flux.arguments(model), "max_area": model.height * model.width, "_auto_resize": False}


def inputs(backbone: Any, vae: Json, size: Size) -> "dict[str, torch.Tensor]":
    """FLUX's, with twice its picture tokens: for 1024x1024 hidden_states [b,8192,64], img_ids [8192,3], whose first column
    is 1 for the picture that is edited."""
    import torch

    found = flux.inputs(backbone, vae, size)
    theirs = found["img_ids"].clone()
    theirs[:, 0] = 1
    latents = found["hidden_states"]
    return found | {
        "hidden_states": torch.cat([latents, latents.flip(1)], 1),
        "img_ids": torch.cat([found["img_ids"], theirs]),
    }


def shown(picture: "torch.Tensor") -> "torch.Tensor":
    """uint8 [b, 3, h, w] in -1..1, FP32, with channels last, as the pipeline has a picture: a convolution's last bits depend
    on it."""
    import torch

    return picture.float().contiguous(memory_format=torch.channels_last) / 127.5 - 1


def condition(encode: Encode, pictures: "Mapping[str, torch.Tensor]", model: Any) -> "torch.Tensor":
    """[b, tokens, 4 x channels]."""
    return flux.packed(encode(shown(pictures["image"])))


def joined(noisy: "torch.Tensor", condition: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.cat([noisy, condition.to(noisy)], 1)


FAMILY = replace(
    flux.FAMILY,
    name="flux_kontext",
    pipeline="FluxKontextPipeline",
    pictures={"image": "image"},
    resizable=False,
    original={},
    arguments=arguments,
    condition=condition,
    joined=joined,
    inputs=inputs,
)
