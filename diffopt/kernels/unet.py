"""A UNet's attention with one product for q, k and v of a picture, and one for k and v of a text."""

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0

from diffopt.kernels.projections import join


def fuse(backbone: UNet2DConditionModel) -> None:
    """In place, layers whose processor is diffusers' own."""
    for layer in backbone.modules():
        if isinstance(layer, Attention) and type(layer.processor) is AttnProcessor2_0 and join(layer):
            layer.processor = FusedAttnProcessor2_0()
