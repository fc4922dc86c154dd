"""FLUX.2: dev, which has its guidance distilled into it, as everything of a Flux2Pipeline."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffopt.models import chat, flux
from diffopt.models.family import Family, Json, Size

if TYPE_CHECKING:
    import torch


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """Three layers of the language model's states beside each other [b, tokens, joint_attention_dim], padding among them.

    The prompt stands within a chat's template, whose tokens count too.
    """
    states, _ = pipe.encode_prompt(prompts, max_sequence_length=model.max_sequence_length)
    return {"prompt_embeds": states}


def embeddings(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    return {"prompt_embeds": (prompts, model.max_sequence_length, config["joint_attention_dim"])}


def unpack(pipe: Any, latents: "torch.Tensor", model: Any) -> "torch.Tensor":
    """[b, tokens, channels] to [b, channels, h, w], in patches of 2x2 and normalised."""
    rows = model.height // (2 * pipe.vae_scale_factor)
    found: torch.Tensor = latents.transpose(1, 2).unflatten(2, (rows, -1))
    return found


def normalised(vae: Any, latents: "torch.Tensor") -> "torch.Tensor":
    """The VAE's latents [b, channels, h, w] in patches of 2x2 [b, 4 channels, h / 2, w / 2], by the statistics of its `bn`."""
    patches = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    mean, variance = (x.to(patches).reshape(1, -1, 1, 1) for x in (vae.bn.running_mean, vae.bn.running_var))
    found: torch.Tensor = (patches - mean) / (variance + vae.config.batch_norm_eps).sqrt()
    return found


def tokens(backbone: Any, vae: Json, size: Size) -> "dict[str, torch.Tensor]":
    """`inputs` without guidance."""
    import torch

    from diffopt.models.example import noise, vae_scale

    config, dtype, scale = backbone.config, backbone.dtype, 2 * vae_scale(vae)
    rows, columns = size.height // scale, size.width // scale
    normal = noise(dtype)
    one = torch.arange(1)
    places = torch.cartesian_prod(one, torch.arange(rows), torch.arange(columns), one)
    words = torch.cartesian_prod(one, one, one, torch.arange(size.text))
    return {
        "hidden_states": normal(size.batch, rows * columns, config.in_channels),
        "encoder_hidden_states": normal(size.batch, size.text, config.joint_attention_dim),
        "timestep": torch.full((size.batch,), 0.5, dtype=dtype),
        "img_ids": places.repeat(size.batch, 1, 1),
        "txt_ids": words.repeat(size.batch, 1, 1),
    }


def inputs(backbone: Any, vae: Json, size: Size) -> "dict[str, torch.Tensor]":
    """A token is 2x2 latents, so a picture of h x w pixels has (h / 2s) * (w / 2s) of them, s being the VAE's scale.

    Shapes for 1024x1024: hidden_states [b,4096,128], encoder_hidden_states [b,512,15360], timestep [b], guidance FP32 [b],
    and the places of the tokens in time, height, width and text, int64: img_ids [b,4096,4] and txt_ids [b,512,4].
    """
    import torch

    guidance = {"guidance": torch.full((size.batch,), 4.0)} if backbone.config.guidance_embeds else {}
    return tokens(backbone, vae, size) | guidance


def packed(latents: "torch.Tensor") -> "torch.Tensor":
    """[b, channels, h, w], which are in patches already: [b, h w, channels]."""
    return latents.flatten(2).transpose(1, 2)


def conditions(texts: Mapping[str, "torch.Tensor"], noisy: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    return {"encoder_hidden_states": texts["prompt_embeds"]}


FAMILY = Family(
    name="flux2",
    pipeline="Flux2Pipeline",
    backbone_class="Flux2Transformer2DModel",
    blocks=flux.FAMILY.blocks,
    cross_attention=False,
    # All blocks of a kind share one modulation, which stands outside them.
    keep=(
        "time_guidance_embed",
        "double_stream_modulation_img",
        "double_stream_modulation_txt",
        "single_stream_modulation",
        "x_embedder",
        "context_embedder",
        "norm_out",
        "proj_out",
    ),
    size_step=16,
    reads=frozenset({"guidance_scale", "max_sequence_length"}),
    guidance="none",
    # FirstBlockCache compares what its first block gives, text and picture, to what its last one does, both joined.
    block_cache=False,
    template=chat.instructed,
    # The first block sees the new latents; what the others added is reused, as FirstBlockCache does, at fixed steps.
    cached=("*", "!transformer_blocks.0"),
    cached_reuse="residual",
    conditions=conditions,
    pack=packed,
    clock=1.0,
    resizable=True,
    arguments=flux.arguments,
    embed=embed,
    embeddings=embeddings,
    inputs=inputs,
    unpack=unpack,
)
