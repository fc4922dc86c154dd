"""FLUX.1: dev, schnell, and everything else with a FluxTransformer2DModel."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffopt.models.family import Family, Json, Size

if TYPE_CHECKING:
    import torch


def arguments(model: Any) -> dict[str, Any]:
    return {"height": model.height, "width": model.width, "guidance_scale": model.guidance_scale}


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """T5's states [b, tokens, joint_attention_dim] and CLIP's pooled state [b, pooled_projection_dim]."""
    states, pooled, _ = pipe.encode_prompt(prompts, None, max_sequence_length=model.max_sequence_length)
    return {"prompt_embeds": states, "pooled_prompt_embeds": pooled}


def embeddings(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    return {
        "prompt_embeds": (prompts, model.max_sequence_length, config["joint_attention_dim"]),
        "pooled_prompt_embeds": (prompts, config["pooled_projection_dim"]),
    }


def unpack(pipe: Any, latents: "torch.Tensor", model: Any) -> "torch.Tensor":
    """[b, tokens, 4 x channels] to [b, channels, h, w]."""
    found: torch.Tensor = pipe._unpack_latents(latents, model.height, model.width, pipe.vae_scale_factor)
    return found


def picture_tokens(vae: Json, size: Size) -> int:
    """Latents are packed 2x2, so a picture of h x w pixels has (h / 2s) * (w / 2s) tokens, s being the VAE's scale."""
    from diffopt.models.example import vae_scale

    scale = 2 * vae_scale(vae)
    return (size.height // scale) * (size.width // scale)


def tokens(backbone: Any, vae: Json, size: Size) -> "dict[str, torch.Tensor]":
    """hidden_states, encoder_hidden_states, timestep, img_ids and txt_ids: see `inputs`."""
    import torch

    from diffopt.models.example import noise, vae_scale

    config, dtype = backbone.config, backbone.dtype
    scale = 2 * vae_scale(vae)
    rows, columns = size.height // scale, size.width // scale
    normal = noise(dtype)
    grid = torch.zeros(rows, columns, 3)
    grid[..., 1] += torch.arange(rows)[:, None]
    grid[..., 2] += torch.arange(columns)[None, :]
    return {
        "hidden_states": normal(size.batch, rows * columns, config.in_channels),
        "encoder_hidden_states": normal(size.batch, size.text, config.joint_attention_dim),
        "timestep": torch.full((size.batch,), 0.5, dtype=dtype),
        "img_ids": grid.reshape(rows * columns, 3).to(dtype),
        "txt_ids": torch.zeros(size.text, 3, dtype=dtype),
    }


def inputs(backbone: Any, vae: Json, size: Size) -> "dict[str, torch.Tensor]":
    """Shapes for 1024x1024: hidden_states [b,4096,64], encoder_hidden_states [b,512,4096], pooled_projections [b,768],
    timestep [b], img_ids [4096,3], txt_ids [512,3], and guidance [b] where the model was distilled with it.
    """
    import torch

    from diffopt.models.example import noise

    config = backbone.config
    pooled = {"pooled_projections": noise(backbone.dtype)(size.batch, config.pooled_projection_dim)}
    guidance = {"guidance": torch.full((size.batch,), 3.5)} if config.guidance_embeds else {}
    return tokens(backbone, vae, size) | pooled | guidance


def packed(latents: "torch.Tensor") -> "torch.Tensor":
    """[b, channels, h, w] in 2x2 patches: [b, h w / 4, 4 channels]."""
    b, channels, h, w = latents.shape
    found = latents.reshape(b, channels, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return found.reshape(b, (h // 2) * (w // 2), channels * 4)


def conditions(texts: Mapping[str, "torch.Tensor"], noisy: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    return {"encoder_hidden_states": texts["prompt_embeds"], "pooled_projections": texts["pooled_prompt_embeds"]}


FAMILY = Family(
    name="flux",
    pipeline="FluxPipeline",
    backbone_class="FluxTransformer2DModel",
    blocks=("transformer_blocks", "single_transformer_blocks"),
    cross_attention=False,
    # Model-Optimizer's examples/diffusers excludes the same, by patterns that also hit every single block's proj_out.
    keep=("time_text_embed", "context_embedder", "x_embedder", "norm_out", "proj_out"),
    size_step=16,
    reads=frozenset({"guidance_scale", "max_sequence_length"}),
    guidance="none",
    # The first block sees the new latents; what the others added is reused, as FirstBlockCache does, at fixed steps.
    cached=("*", "!transformer_blocks.0"),
    cached_reuse="residual",
    unbatched=("img_ids", "txt_ids"),
    conditions=conditions,
    pack=packed,
    clock=1.0,
    resizable=True,
    original={"batch_size": (1, 1)},
    arguments=arguments,
    embed=embed,
    embeddings=embeddings,
    inputs=inputs,
    unpack=unpack,
)
