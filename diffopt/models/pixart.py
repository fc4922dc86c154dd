"""PixArt-alpha and PixArt-Sigma."""

from typing import TYPE_CHECKING, Any

from diffopt.models.family import Family, Json, Size, masked_shapes, paired, present

if TYPE_CHECKING:
    import torch


def arguments(model: Any) -> dict[str, Any]:
    """Without binning the picture has the size that was asked for; with it the pipeline draws another and resizes it."""
    return {
        "height": model.height,
        "width": model.width,
        "guidance_scale": model.guidance_scale,
        "use_resolution_binning": False,
    }


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """T5's states [b, tokens, caption_channels] and which of them are no padding, bool [b, tokens]."""
    states, mask, negative, negative_mask = pipe.encode_prompt(
        prompts,
        FAMILY.guided(model),
        model.negative_prompt,
        max_sequence_length=model.max_sequence_length,
    )
    masks = present(prompt_attention_mask=mask, negative_prompt_attention_mask=negative_mask)
    return present(prompt_embeds=states, negative_prompt_embeds=negative) | {n: x.bool() for n, x in masks.items()}


def embeddings(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    return paired(masked_shapes(prompts, model, config["caption_channels"]), FAMILY.guided(model))


def inputs(backbone: Any, vae: Json, size: Size) -> "dict[str, torch.Tensor]":
    """Shapes for 1024x1024 by PixArt-Sigma: hidden_states [b,4,128,128], timestep [b], encoder_hidden_states [b,300,4096],
    encoder_attention_mask bool [b,300]; PixArt-alpha has resolution [b,2] and aspect_ratio [b,1] besides.

    The timestep is FP32, which every scheduler's fits in exactly; some schedulers count in integers.
    """
    import torch

    from diffopt.models.example import noise, vae_scale

    config, scale, dtype = backbone.config, vae_scale(vae), backbone.dtype
    normal = noise(dtype)
    found = {
        "hidden_states": normal(size.batch, config.in_channels, size.height // scale, size.width // scale),
        "timestep": torch.full((size.batch,), 500.0),
        "encoder_hidden_states": normal(size.batch, size.text, config.caption_channels),
        "encoder_attention_mask": torch.ones(size.batch, size.text, dtype=torch.bool),
    }
    if not backbone.use_additional_conditions:
        return found
    return found | {
        "resolution": torch.tensor([size.height, size.width], dtype=dtype).repeat(size.batch, 1),
        "aspect_ratio": torch.tensor([size.height / size.width], dtype=dtype).repeat(size.batch, 1),
    }


FAMILY = Family(
    name="pixart",
    pipeline="PixArtSigmaPipeline",
    variants=("PixArtAlphaPipeline",),
    backbone_class="PixArtTransformer2DModel",
    blocks=("transformer_blocks",),
    keep=("pos_embed", "adaln_single", "caption_projection", "proj_out"),
    size_step=16,
    nested={"resolution": "added_cond_kwargs", "aspect_ratio": "added_cond_kwargs"},
    block_cache=False,
    lora=False,
    # Model-Optimizer's default is meant to reuse blocks 21 to 27 of 28 where step % 3 is not 0; its pattern matches all.
    cached=("transformer_blocks.-[1-7]",),
    cached_every=3,
    arguments=arguments,
    embed=embed,
    embeddings=embeddings,
    inputs=inputs,
)
