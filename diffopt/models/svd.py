"""Stable Video Diffusion: a picture to a video that begins with it."""

from typing import TYPE_CHECKING, Any

from diffopt.models import unet
from diffopt.models.family import Family, Json, Size

if TYPE_CHECKING:
    import torch

FRAME_RATE, MOTION, NOISE = 7, 127, 0.02
"""Frames per second, motion bucket and the noise added to the picture: the pipeline's defaults, given to the backbone."""


def arguments(model: Any) -> dict[str, Any]:
    """Guidance grows from 1 at the first frame to guidance_scale at the last."""
    return {
        "height": model.height,
        "width": model.width,
        "num_frames": model.frames,
        "min_guidance_scale": 1.0,
        "max_guidance_scale": model.guidance_scale,
        "fps": FRAME_RATE,
        "motion_bucket_id": MOTION,
        "noise_aug_strength": NOISE,
    }


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """CLIP's embeddings of the pictures [b, 1, cross_attention_dim], and the pictures themselves, uint8 [b, 3, h, w].

    The pipeline adds noise to each picture by its video's own generator before the VAE encodes it: so the latents of the
    pictures are not known yet. A picture of another shape is cropped about its middle, then resized.
    """
    from diffopt.data.pictured import fitted
    from diffopt.models.svd_pipeline import pixels

    pictures = [fitted(path, model.width, model.height) for path in prompts]
    embedded = pipe._encode_image(pictures, pipe._execution_device, 1, False)
    return {"image": pixels(pictures), "image_embeddings": embedded}


def embeddings(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    return {
        "image": (prompts, 3, model.height, model.width),
        "image_embeddings": (prompts, 1, config["cross_attention_dim"]),
    }


def inputs(backbone: Any, vae: Json, size: Size) -> "dict[str, torch.Tensor]":
    """Shapes for 25 frames of 1024x576: sample [b,25,8,72,128] of noisy latents and the picture's, timestep [],
    encoder_hidden_states [b,1,1024], added_time_ids [b,3].

    The timestep is FP32, which every scheduler's fits in exactly.
    """
    import torch

    from diffopt.models.example import noise, vae_scale

    config, scale, dtype = backbone.config, vae_scale(vae), backbone.dtype
    normal = noise(dtype)
    return {
        "sample": normal(size.batch, size.frames, config.in_channels, size.height // scale, size.width // scale),
        "timestep": torch.tensor(1.0),
        "encoder_hidden_states": normal(size.batch, 1, config.cross_attention_dim),
        "added_time_ids": torch.tensor([FRAME_RATE - 1, MOTION, NOISE], dtype=dtype).repeat(size.batch, 1),
    }


FAMILY = Family(
    name="svd",
    pipeline="StableVideoDiffusionPipeline",
    backbone_class="UNetSpatioTemporalConditionModel",
    backbones=("unet",),
    blocks=unet.BLOCKS,
    keep=(*unet.KEEP, "*.time_pos_embed"),
    size_step=unet.SIZE_STEP,
    frame_step=1,
    frame_rate=lambda _: FRAME_RATE,
    animates=True,
    ours="svd_pipeline",
    reads=frozenset({"guidance_scale"}),
    convolutions=True,
    unbatched=("timestep",),
    block_cache=False,
    lora=False,
    cached=unet.CACHED,
    arguments=arguments,
    embed=embed,
    embeddings=embeddings,
    inputs=inputs,
)
