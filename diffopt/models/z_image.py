"""Z-Image and Z-Image-Turbo: one stream of picture and text, after a few blocks for each alone."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffopt.models import chat, flux
from diffopt.models.family import Family, Json, Size, paired

if TYPE_CHECKING:
    import torch


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """Qwen3's states [b, tokens, cap_feat_dim], padded to the longest prompt, and which of them are no padding, bool
    [b, tokens]. The prompt stands within a chat's template, whose tokens count too."""
    guided = FAMILY.guided(model)
    states, negative = pipe.encode_prompt(
        list(prompts),
        do_classifier_free_guidance=guided,
        negative_prompt=[model.negative_prompt] * len(prompts) if guided else None,
        max_sequence_length=model.max_sequence_length,
    )
    return _padded(states, "") | (_padded(negative, "negative_") if guided else {})


def _padded(states: "list[torch.Tensor]", kind: str) -> "dict[str, torch.Tensor]":
    import torch
    from torch.nn.utils.rnn import pad_sequence

    mask = pad_sequence([torch.ones(len(x), dtype=torch.bool, device=x.device) for x in states], batch_first=True)
    return {f"{kind}prompt_embeds": pad_sequence(states, batch_first=True), f"{kind}prompt_embeds_mask": mask}


def embeddings(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    shapes = {
        "prompt_embeds": (prompts, model.max_sequence_length, config["cap_feat_dim"]),
        "prompt_embeds_mask": (prompts, model.max_sequence_length),
    }
    return paired(shapes, FAMILY.guided(model))


def inputs(backbone: Any, vae: Json, size: Size) -> "dict[str, torch.Tensor]":
    """Shapes for 1024x1024: hidden_states [b,16,1,128,128], encoder_hidden_states [b,tokens,2560], timestep FP32 [b], which
    runs from 0 at pure noise to 1."""
    import torch

    from diffopt.models.example import noise, vae_scale

    config, scale = backbone.config, vae_scale(vae)
    normal = noise(backbone.dtype)
    return {
        "hidden_states": normal(size.batch, config.in_channels, 1, size.height // scale, size.width // scale),
        "encoder_hidden_states": normal(size.batch, size.text, config.cap_feat_dim),
        "timestep": torch.full((size.batch,), 0.5),
    }


def packed(latents: "torch.Tensor") -> "torch.Tensor":
    """[b, channels, h, w] with an axis of one frame."""
    return latents.unsqueeze(2)


def unpack(pipe: Any, latents: "torch.Tensor", model: Any) -> "torch.Tensor":
    """Without it; its pipeline gives them so."""
    return latents.squeeze(2) if latents.dim() == 5 else latents


def conditions(texts: Mapping[str, "torch.Tensor"], noisy: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    return {"encoder_hidden_states": texts["prompt_embeds"], "encoder_attention_mask": texts["prompt_embeds_mask"]}


FAMILY = Family(
    name="z_image",
    pipeline="ZImagePipeline",
    ours="z_image_pipeline",
    backbone_class="ZImageTransformer2DModel",
    blocks=("noise_refiner", "context_refiner", "layers"),
    cross_attention=False,
    # With two blocks at either end of `layers` that is what Model-Optimizer's examples/diffusers excludes (filter_func_zimage),
    # and the embedding of time, whose name there is not this backbone's.
    keep=("t_embedder", "cap_embedder", "all_x_embedder", "all_final_layer"),
    ends=2,
    size_step=16,
    unguided=0.0,
    template=chat.thinking,
    block_cache=False,
    # What the others added cannot be told of these blocks, so the last ones are reused.
    cached=("layers.-[1-9]",),
    renamed={"hidden_states": "x", "encoder_hidden_states": "cap_feats", "timestep": "t"},
    listed={"hidden_states": None, "encoder_hidden_states": "encoder_attention_mask"},
    conditions=conditions,
    pack=packed,
    clock=1.0,
    backwards=True,
    arguments=flux.arguments,
    embed=embed,
    embeddings=embeddings,
    inputs=inputs,
    unpack=unpack,
)
