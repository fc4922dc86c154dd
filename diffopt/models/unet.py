"""What the families with a UNet2DConditionModel have in common."""

from typing import TYPE_CHECKING, Any

from diffopt.models.family import Json, Size

if TYPE_CHECKING:
    import torch

CLIP = 77
"""Tokens of a prompt, where nothing says otherwise."""
BLOCKS = ("down_blocks", "up_blocks")
# Model-Optimizer's examples/diffusers excludes the same: what works on time, the ends, and the shortcuts' 1x1 convolutions.
KEEP = ("time_embedding", "add_embedding", "conv_in", "conv_out", "*.time_emb_proj", "*.conv_shortcut")
SIZE_STEP = 8
# Model-Optimizer's defaults for SDXL (not up_blocks.2) and SVD (not up_blocks.3): all but the block at the end, which sees
# the new latents through the skip connections of the finest level. DeepCache (Ma et al. 2023) keeps the same level.
CACHED = ("*", "!up_blocks.-1")
READS = frozenset({"guidance_scale", "negative_prompt"})


def arguments(model: Any) -> dict[str, Any]:
    return {"height": model.height, "width": model.width, "guidance_scale": model.guidance_scale}


def inputs(backbone: Any, vae: Json, size: Size) -> "dict[str, torch.Tensor]":
    """sample [b,4,h,w] of latents, timestep [] and encoder_hidden_states [b,tokens,cross_attention_dim].

    The timestep is FP32, which every scheduler's fits in exactly; some schedulers count in integers.
    """
    import torch

    from diffopt.models.example import noise, vae_scale

    config, scale = backbone.config, vae_scale(vae)
    normal = noise(backbone.dtype)
    return {
        "sample": normal(size.batch, config.in_channels, size.height // scale, size.width // scale),
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": normal(size.batch, size.text or CLIP, config.cross_attention_dim),
    }
