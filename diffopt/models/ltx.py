"""LTX-Video."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffopt.models.family import Family, Json, Size, masked, masked_shapes, paired, video

if TYPE_CHECKING:
    import torch

FRAME_RATE = 25
"""Frames per second, the pipeline's default: positions in time are counted in seconds."""
SPACE, TIME = 32, 8
"""Pixels per latent along a side and frames per latent, of the VAE that all of them have."""
DECODE_TIMESTEP, DECODE_NOISE = 0.05, 0.025
"""What the VAE that denoises once more is decoded with: the card of LTX-Video-0.9.7. Other VAEs do not read it."""


def arguments(model: Any) -> dict[str, Any]:
    decoded = {"decode_timestep": DECODE_TIMESTEP, "decode_noise_scale": DECODE_NOISE}
    return {**video(model), "frame_rate": FRAME_RATE, **decoded}


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """T5's states [b, tokens, caption_channels] and which of them are no padding, bool [b, tokens]."""
    found = pipe.encode_prompt(
        prompts,
        model.negative_prompt or None,
        do_classifier_free_guidance=FAMILY.guided(model),
        max_sequence_length=model.max_sequence_length,
    )
    return masked(*found)


def embeddings(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    return paired(masked_shapes(prompts, model, config["caption_channels"]), FAMILY.guided(model))


def unpack(pipe: Any, latents: "torch.Tensor", model: Any) -> "torch.Tensor":
    """[b, tokens, channels] to [b, channels, frames, h, w]."""
    space, time = pipe.vae_spatial_compression_ratio, pipe.vae_temporal_compression_ratio
    extent = (model.frames - 1) // time + 1, model.height // space, model.width // space
    patch = pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size
    found: torch.Tensor = pipe._unpack_latents(latents, *extent, *patch)
    return found


def inputs(backbone: Any, vae: Json, size: Size) -> dict[str, Any]:
    """A video of f frames of h x w pixels has ((f - 1) / t + 1) * (h / s) * (w / s) tokens, t and s being the VAE's.

    Shapes for 161 frames of 704x512: hidden_states [b,7392,128], encoder_hidden_states [b,128,4096], timestep [b],
    encoder_attention_mask bool [b,128]; num_frames 21, height 16, width 22 and rope_interpolation_scale are constants.
    """
    import torch

    from diffopt.models.example import noise

    config = backbone.config
    space, time = compression(vae)
    frames, rows, columns = (size.frames - 1) // time + 1, size.height // space, size.width // space
    normal = noise(backbone.dtype)
    return {
        "hidden_states": normal(size.batch, frames * rows * columns, config.in_channels),
        "encoder_hidden_states": normal(size.batch, size.text, config.caption_channels),
        "timestep": torch.full((size.batch,), 500.0),
        "encoder_attention_mask": torch.ones(size.batch, size.text, dtype=torch.bool),
        "num_frames": frames,
        "height": rows,
        "width": columns,
        "rope_interpolation_scale": (time / FRAME_RATE, space, space),
    }


def compression(vae: Json) -> tuple[int, int]:
    """Pixels per latent along a side and frames per latent, as AutoencoderKLLTXVideo reckons where its config is silent."""
    levels = 2 ** sum(vae["spatio_temporal_scaling"])
    space, time = vae.get("spatial_compression_ratio"), vae.get("temporal_compression_ratio")
    return space or vae.get("patch_size", 4) * levels, time or vae.get("patch_size_t", 1) * levels


def packed(latents: "torch.Tensor") -> "torch.Tensor":
    """[b, channels, frames, h, w] to [b, frames h w, channels]: its patches are single latents."""
    return latents.flatten(2).transpose(1, 2)


def conditions(texts: Mapping[str, "torch.Tensor"], noisy: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    return {"encoder_hidden_states": texts["prompt_embeds"], "encoder_attention_mask": texts["prompt_attention_mask"]}


FAMILY = Family(
    name="ltx",
    pipeline="LTXPipeline",
    aliases=("LTXConditionPipeline",),
    backbone_class="LTXVideoTransformer3DModel",
    blocks=("transformer_blocks",),
    keep=("proj_in", "time_embed", "caption_projection", "proj_out"),
    ends=3,
    size_step=SPACE,
    frame_step=TIME,
    frame_rate=lambda _: FRAME_RATE,
    # The first block sees the new latents; what the others added is reused, as FirstBlockCache does, at fixed steps.
    cached=("*", "!transformer_blocks.0"),
    cached_reuse="residual",
    arguments=arguments,
    conditions=conditions,
    pack=packed,
    embed=embed,
    embeddings=embeddings,
    inputs=inputs,
    timed=True,
    unpack=unpack,
)
