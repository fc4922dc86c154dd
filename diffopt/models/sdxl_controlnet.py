"""Stable Diffusion XL with a ControlNet, whose states of a picture enter the UNet's skip connections at each step."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffopt.models import sdxl, unet
from diffopt.models.family import Json, Size

if TYPE_CHECKING:
    import torch

STRENGTH = 0.5
"""Of the ControlNet's states: the model card of diffusers/controlnet-canny-sdxl-1.0 recommends it."""
DOWN, MIDDLE = "down_block_additional_residuals", "mid_block_additional_residual"


def arguments(model: Any) -> dict[str, Any]:
    return {**unet.arguments(model), "controlnet_conditioning_scale": STRENGTH}


def inputs(backbone: Any, vae: Json, size: Size) -> "dict[str, torch.Tensor]":
    """SDXL's, and a state for each skip connection and the middle: for 1024x1024 nine from [b,320,128,128] to [b,1280,32,32],
    and mid_block_additional_residual [b,1280,32,32]."""
    from diffopt.models.example import noise, vae_scale

    found, config = sdxl.inputs(backbone, vae, size), backbone.config
    rows, columns = (side // vae_scale(vae) for side in (size.height, size.width))
    normal, widths = noise(backbone.dtype), config.block_out_channels
    shapes = [(widths[0], rows, columns)]
    for level, width in enumerate(widths):
        shapes += [(width, rows, columns)] * config.layers_per_block
        if level + 1 < len(widths):
            rows, columns = -(-rows // 2), -(-columns // 2)
            shapes.append((width, rows, columns))
    states = {f"{DOWN}_{i}": normal(size.batch, *shape) for i, shape in enumerate(shapes)}
    return found | states | {MIDDLE: normal(size.batch, *shapes[-1])}


FAMILY = replace(
    sdxl.FAMILY,
    name="sdxl_controlnet",
    pipeline="StableDiffusionXLControlNetPipeline",
    pictures={"control": "image"},
    beside=("controlnet",),
    extends=sdxl.FAMILY.pipeline,
    several=(DOWN,),
    original={},
    conditions=None,  # what the ControlNet makes of noised latents and the picture is not known beforehand
    arguments=arguments,
    inputs=inputs,
)
