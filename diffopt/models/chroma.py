"""Chroma: FLUX.1-schnell's blocks with one network that modulates all of them, and classifier-free guidance."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffopt.models import flux
from diffopt.models.family import Family, Json, Size, masked, masked_shapes, paired

if TYPE_CHECKING:
    import torch


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """T5's states [b, tokens, joint_attention_dim] and its mask [b, tokens], which keeps one token of the padding."""
    states, _, mask, negative, _, negative_mask = pipe.encode_prompt(
        prompts,
        model.negative_prompt or None,
        do_classifier_free_guidance=FAMILY.guided(model),
        max_sequence_length=model.max_sequence_length,
    )
    return masked(states, mask, negative, negative_mask)


def embeddings(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    return paired(masked_shapes(prompts, model, config["joint_attention_dim"]), FAMILY.guided(model))


def inputs(backbone: Any, vae: Json, size: Size) -> "dict[str, torch.Tensor]":
    """FLUX's without pooled_projections and guidance, and with attention_mask [b, text + picture tokens] of the model's
    dtype."""
    import torch

    return flux.tokens(backbone, vae, size) | {
        "attention_mask": torch.ones(size.batch, size.text + flux.picture_tokens(vae, size), dtype=backbone.dtype)
    }


def conditions(texts: Mapping[str, "torch.Tensor"], noisy: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    """The prompt's mask goes on over the picture's tokens."""
    import torch

    mask = texts["prompt_attention_mask"]
    whole = torch.cat([mask, mask.new_ones(noisy.shape[:2])], 1)
    return {"encoder_hidden_states": texts["prompt_embeds"], "attention_mask": whole}


FAMILY = Family(
    name="chroma",
    pipeline="ChromaPipeline",
    backbone_class="ChromaTransformer2DModel",
    blocks=("transformer_blocks", "single_transformer_blocks"),
    cross_attention=False,
    keep=("distilled_guidance_layer", "context_embedder", "x_embedder", "proj_out"),
    size_step=16,
    guidance="separate",
    unbatched=("img_ids", "txt_ids"),
    conditions=conditions,
    pack=flux.packed,
    clock=1.0,
    block_cache=False,
    # The first block sees the new latents; what the others added is reused, as FirstBlockCache does, at fixed steps.
    cached=("*", "!transformer_blocks.0"),
    cached_reuse="residual",
    resizable=True,
    arguments=flux.arguments,
    embed=embed,
    embeddings=embeddings,
    inputs=inputs,
    unpack=flux.unpack,
)
