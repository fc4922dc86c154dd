"""Qwen-Image."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffopt.models import flux
from diffopt.models.family import Family, Json, Size, paired, present, with_negative

if TYPE_CHECKING:
    import torch


def arguments(model: Any) -> dict[str, Any]:
    """The pipeline's guidance_scale is for models distilled with it, of which there is none: guidance is its true_cfg_scale."""
    return {"height": model.height, "width": model.width, "true_cfg_scale": model.guidance_scale}


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """Qwen2.5-VL's states [b, tokens, joint_attention_dim], padded to the longest prompt, and which of them are no
    padding, int64 [b, tokens]."""
    negative = [model.negative_prompt] * len(prompts)
    return with_negative(encoded(pipe, prompts, model), lambda: encoded(pipe, negative, model), FAMILY.guided(model))


def encoded(pipe: Any, prompts: list[str], model: Any, **shown: Any) -> "dict[str, torch.Tensor]":
    """Without guidance; `shown` are further arguments of encode_prompt."""
    states, mask = pipe.encode_prompt(prompts, max_sequence_length=model.max_sequence_length, **shown)
    if mask is None:  # the pipeline's way to say that nothing is padding
        mask = states.new_ones(states.shape[:2]).long()
    return {"prompt_embeds": states, "prompt_embeds_mask": mask}


def embeddings(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    shapes = {
        "prompt_embeds": (prompts, model.max_sequence_length, config["joint_attention_dim"]),
        "prompt_embeds_mask": (prompts, model.max_sequence_length),
    }
    return paired(shapes, FAMILY.guided(model))


def unpack(pipe: Any, latents: "torch.Tensor", model: Any) -> "torch.Tensor":
    """[b, tokens, 4 x channels] to [b, channels, 1, h, w]: its VAE is one of videos."""
    found: torch.Tensor = pipe._unpack_latents(latents, model.height, model.width, pipe.vae_scale_factor)
    return found


def inputs(backbone: Any, vae: Json, size: Size) -> dict[str, Any]:
    """Latents are packed 2x2, so a picture of h x w pixels has (h / 2s) * (w / 2s) tokens, s being the VAE's scale.

    Shapes for 1328x1328: hidden_states [b,6889,64], encoder_hidden_states [b,tokens,3584], timestep [b]; img_shapes is a
    constant. In a batch the mask encoder_hidden_states_mask int64 [b,tokens] tells the padding; a single prompt has none.
    """
    import torch

    from diffopt.models.example import noise

    config, dtype = backbone.config, backbone.dtype
    scale = 2 * 2 ** len(vae["temperal_downsample"])
    rows, columns = size.height // scale, size.width // scale
    normal = noise(dtype)
    mask = torch.ones(size.batch, size.text, dtype=torch.int64) if size.batch > 1 else None
    return {
        "hidden_states": normal(size.batch, rows * columns, config.in_channels),
        "encoder_hidden_states": normal(size.batch, size.text, config.joint_attention_dim),
        **present(encoder_hidden_states_mask=mask),
        "timestep": torch.full((size.batch,), 0.5, dtype=dtype),
        "img_shapes": [[(1, rows, columns)]] * size.batch,
    }


def packed(latents: "torch.Tensor") -> "torch.Tensor":
    """[b, channels, 1, h, w], its VAE being one of videos, to FLUX's tokens."""
    return flux.packed(latents.squeeze(2) if latents.dim() == 5 else latents)


def conditions(texts: Mapping[str, "torch.Tensor"], noisy: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    return {"encoder_hidden_states": texts["prompt_embeds"], "encoder_hidden_states_mask": texts["prompt_embeds_mask"]}


FAMILY = Family(
    name="qwen_image",
    pipeline="QwenImagePipeline",
    backbone_class="QwenImageTransformer2DModel",
    blocks=("transformer_blocks",),
    cross_attention=False,
    keep=("time_text_embed", "img_in", "txt_in", "norm_out", "proj_out"),
    ends=2,
    size_step=16,
    guidance="separate",
    # The first block sees the new latents; what the others added is reused, as FirstBlockCache does, at fixed steps.
    cached=("*", "!transformer_blocks.0"),
    cached_reuse="residual",
    arguments=arguments,
    conditions=conditions,
    pack=packed,
    clock=1.0,
    embed=embed,
    embeddings=embeddings,
    inputs=inputs,
    timed=True,
    unpack=unpack,
)
