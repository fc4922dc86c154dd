"""Sana: linear attention over few, deep latents, as everything of a SanaPipeline."""

from collections.abc import Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

from diffopt.models import pixart
from diffopt.models.family import Family, Json, Size, masked, masked_shapes, paired

if TYPE_CHECKING:
    import torch


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """Gemma's states [b, tokens, caption_channels] and which of them are no padding, int64 [b, tokens]. A prompt comes after
    the instruction that the pipeline's call has by default, of which no states are kept."""
    found = pipe.encode_prompt(
        prompts,
        FAMILY.guided(model),
        model.negative_prompt,
        **asked(pipe, model),
    )
    return masked(*found)


def asked(pipe: Any, model: Any) -> dict[str, Any]:
    """Arguments of encode_prompt."""
    instruction = signature(type(pipe).__call__).parameters["complex_human_instruction"].default
    return {"max_sequence_length": model.max_sequence_length, "complex_human_instruction": instruction}


def embeddings(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    return paired(shapes(config, prompts, model), FAMILY.guided(model))


def shapes(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    """Without those of guidance."""
    return masked_shapes(prompts, model, config["caption_channels"])


def inputs(backbone: Any, vae: Json, size: Size) -> "dict[str, torch.Tensor]":
    """Shapes for 1024x1024: hidden_states [b,32,32,32], encoder_hidden_states [b,300,2304], encoder_attention_mask int64
    [b,300], timestep [b], and guidance [b] where the model was distilled with it.

    The timestep is FP32, which every scheduler's fits in exactly; some schedulers count in integers.
    """
    import torch

    from diffopt.models.example import noise, vae_scale

    config, dtype = backbone.config, backbone.dtype
    scale = vae_scale(vae)
    normal = noise(dtype)
    guidance = {"guidance": torch.full((size.batch,), 0.45, dtype=dtype)} if config.guidance_embeds else {}
    return {
        "hidden_states": normal(size.batch, config.in_channels, size.height // scale, size.width // scale),
        "encoder_hidden_states": normal(size.batch, size.text, config.caption_channels),
        "encoder_attention_mask": torch.ones(size.batch, size.text, dtype=torch.int64),
        "timestep": torch.full((size.batch,), 0.5),
    } | guidance


def conditions(texts: Mapping[str, "torch.Tensor"], noisy: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    return {"encoder_hidden_states": texts["prompt_embeds"], "encoder_attention_mask": texts["prompt_attention_mask"]}


FAMILY = Family(
    name="sana",
    pipeline="SanaPipeline",
    backbone_class="SanaTransformer2DModel",
    blocks=("transformer_blocks",),
    # Of the feed forward's convolutions two are products; the third goes through each channel alone.
    keep=("patch_embed", "time_embed", "caption_projection", "proj_out", "*.conv_depth"),
    convolutions=True,
    size_step=32,
    # That to the picture is linear, and has no scores to quantize.
    attention=False,
    block_cache=False,
    # The first block sees the new latents; what the others added is reused, as FirstBlockCache does, at fixed steps.
    cached=("*", "!transformer_blocks.0"),
    cached_reuse="residual",
    conditions=conditions,
    arguments=pixart.arguments,
    embed=embed,
    embeddings=embeddings,
    inputs=inputs,
)
