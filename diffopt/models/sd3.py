"""Stable Diffusion 3 medium, 3.5 medium and 3.5 large."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffopt.models.family import Family, Json, Size, paired, present

if TYPE_CHECKING:
    import torch

CLIP = 77
"""Tokens of the two CLIP encoders, which come before T5's."""
SCALE = 8
"""Pixels per latent along a side, of the VAE that all of them have."""


def arguments(model: Any) -> dict[str, Any]:
    return {"height": model.height, "width": model.width, "guidance_scale": model.guidance_scale}


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """CLIP's and T5's states [b, 77 + tokens, joint_attention_dim] and CLIP's pooled ones [b, pooled_projection_dim]."""
    guided = FAMILY.guided(model)
    states, negative, pooled, negative_pooled = pipe.encode_prompt(
        prompts,
        None,
        None,
        do_classifier_free_guidance=guided,
        negative_prompt=model.negative_prompt if guided else None,
        max_sequence_length=model.max_sequence_length,
    )
    return present(
        prompt_embeds=states,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=negative,
        negative_pooled_prompt_embeds=negative_pooled,
    )


def embeddings(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    shapes = {
        "prompt_embeds": (prompts, CLIP + model.max_sequence_length, config["joint_attention_dim"]),
        "pooled_prompt_embeds": (prompts, config["pooled_projection_dim"]),
    }
    return paired(shapes, FAMILY.guided(model))


def inputs(backbone: Any, vae: Json, size: Size) -> "dict[str, torch.Tensor]":
    """Shapes for 1024x1024 and 256 tokens of T5: hidden_states [b,16,128,128], timestep [b], encoder_hidden_states
    [b,333,4096], pooled_projections [b,2048]."""
    import torch

    from diffopt.models.example import noise, vae_scale

    config, scale = backbone.config, vae_scale(vae)
    normal = noise(backbone.dtype)
    return {
        "hidden_states": normal(size.batch, config.in_channels, size.height // scale, size.width // scale),
        "timestep": torch.full((size.batch,), 500.0),
        "encoder_hidden_states": normal(size.batch, CLIP + size.text, config.joint_attention_dim),
        "pooled_projections": normal(size.batch, config.pooled_projection_dim),
    }


def largest(config: Json) -> int:
    """Positions are cut from a table of pos_embed_max_size x pos_embed_max_size patches."""
    return int(config["pos_embed_max_size"] * config["patch_size"] * SCALE)


def conditions(texts: Mapping[str, "torch.Tensor"], noisy: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    return {"encoder_hidden_states": texts["prompt_embeds"], "pooled_projections": texts["pooled_prompt_embeds"]}


FAMILY = Family(
    name="sd3",
    pipeline="StableDiffusion3Pipeline",
    backbone_class="SD3Transformer2DModel",
    blocks=("transformer_blocks",),
    cross_attention=False,
    keep=("pos_embed", "time_text_embed", "context_embedder", "norm_out", "proj_out"),
    size_step=16,
    spare=("text_encoder_3", "tokenizer_3"),
    largest=largest,
    block_cache=False,
    cached=("*", "!transformer_blocks.-[1-8]"),  # Model-Optimizer's default: of SD3's 24 blocks not 16 to 23
    resizable=True,
    original={"batch_size": (1, 8)},
    arguments=arguments,
    conditions=conditions,
    embed=embed,
    embeddings=embeddings,
    inputs=inputs,
)
