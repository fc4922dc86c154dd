"""Qwen-Image-Edit 2509 and 2511: a picture edited by a text, behind whose noisy latents its own stand."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffopt.models import flux_kontext, qwen_image
from diffopt.models.family import Encode, Json, Size, with_negative

if TYPE_CHECKING:
    import torch


def embed(pipe: Any, prompts: list[Any], model: Any) -> "dict[str, torch.Tensor]":
    """Qwen2.5-VL's states of the picture, of about 384x384 pixels, and the text; as `qwen_image.embed`, of one prompt."""
    from diffopt.data.pictured import fitted

    (prompt,) = prompts
    width, height = sides("CONDITION_IMAGE_SIZE", model.width, model.height)
    picture = fitted(prompt.pictures["image"], model.width, model.height)
    shown = [pipe.image_processor.resize(picture, height, width)]

    def encoded(text: str) -> "dict[str, torch.Tensor]":
        return qwen_image.encoded(pipe, [text], model, image=shown)

    return with_negative(encoded(str(prompt)), lambda: encoded(model.negative_prompt), FAMILY.guided(model))


def sides(area: str, width: int, height: int) -> tuple[int, int]:
    """Width and height that the pipeline resizes a picture to, of about so many pixels as its module's constant says."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as theirs

    found: tuple[int, int] = theirs.calculate_dimensions(getattr(theirs, area), width / height)
    return found


def inputs(backbone: Any, vae: Json, size: Size) -> dict[str, Any]:
    """Qwen-Image's, with the tokens of the picture, which has about 1024x1024 pixels whatever is drawn: for 1024x1024
    hidden_states [b,8192,64]; img_shapes has both sizes."""
    import torch

    found = qwen_image.inputs(backbone, vae, size)
    width, height = sides("VAE_IMAGE_SIZE", size.width, size.height)
    theirs = qwen_image.inputs(backbone, vae, replace(size, width=width, height=height))
    shapes = [[*a, *b] for a, b in zip(found["img_shapes"], theirs["img_shapes"], strict=True)]
    latents = torch.cat([found["hidden_states"], theirs["hidden_states"]], 1)
    return found | {"hidden_states": latents, "img_shapes": shapes}


def condition(encode: Encode, pictures: "Mapping[str, torch.Tensor]", model: Any) -> "torch.Tensor":
    """[b, tokens, 4 x channels]."""
    import numpy as np
    import torch
    from PIL import Image

    size = sides("VAE_IMAGE_SIZE", model.width, model.height)
    shown = [Image.fromarray(x.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.LANCZOS) for x in pictures["image"]]
    pixels = torch.stack([torch.from_numpy(np.array(x)).permute(2, 0, 1) for x in shown])
    return qwen_image.packed(encode(pixels[:, :, None].float() / 127.5 - 1))


FAMILY = replace(
    qwen_image.FAMILY,
    name="qwen_image_edit",
    pipeline="QwenImageEditPlusPipeline",
    pictures={"image": "image"},
    single=True,
    ours="qwen_image_edit_pipeline",
    embed=embed,
    condition=condition,
    joined=flux_kontext.joined,
    inputs=inputs,
)
