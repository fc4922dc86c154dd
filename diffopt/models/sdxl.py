"""Stable Diffusion XL: base and turbo."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffopt.models import unet
from diffopt.models.family import Family, Json, Size, paired, present

if TYPE_CHECKING:
    import torch

SIZES = 6
"""Numbers in time_ids: the original size, the corner of the crop and the wanted size."""


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """States of both CLIP encoders side by side [b, 77, cross_attention_dim], and the second one's pooled state.

    Without a negative prompt the unconditional embeddings are zeros, as the pipeline makes them.
    """
    states, negative, pooled, negative_pooled = pipe.encode_prompt(
        prompts,
        do_classifier_free_guidance=FAMILY.guided(model),
        negative_prompt=model.negative_prompt or None,
    )
    return present(
        prompt_embeds=states,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=negative,
        negative_pooled_prompt_embeds=negative_pooled,
    )


def embeddings(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    shapes = {
        "prompt_embeds": (prompts, unet.CLIP, config["cross_attention_dim"]),
        "pooled_prompt_embeds": (prompts, _pooled(config)),
    }
    return paired(shapes, FAMILY.guided(model))


def inputs(backbone: Any, vae: Json, size: Size) -> "dict[str, torch.Tensor]":
    """Shapes for 1024x1024: sample [b,4,128,128], timestep [], encoder_hidden_states [b,77,2048], text_embeds [b,1280],
    time_ids [b,6]."""
    import torch

    from diffopt.models.example import noise

    dtype = backbone.dtype
    sizes = torch.tensor([size.height, size.width, 0, 0, size.height, size.width], dtype=dtype)
    return unet.inputs(backbone, vae, size) | {
        "text_embeds": noise(dtype)(size.batch, _pooled(backbone.config)),
        "time_ids": sizes.repeat(size.batch, 1),
    }


def _pooled(config: Json) -> int:
    return int(config["projection_class_embeddings_input_dim"] - SIZES * config["addition_time_embed_dim"])


def conditions(texts: Mapping[str, "torch.Tensor"], noisy: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    return {"encoder_hidden_states": texts["prompt_embeds"], "text_embeds": texts["pooled_prompt_embeds"]}


def misfit(configs: Mapping[str, Json]) -> str | None:
    """A model may have been trained with one text encoder: then the UNet takes as many features as that gives."""
    texts = [c["hidden_size"] for name, c in configs.items() if name.startswith("text_encoder") and "hidden_size" in c]
    takes = configs.get("unet", {}).get("cross_attention_dim")
    if not texts or takes is None or sum(texts) == takes:
        return None
    return f"its text encoders give {sum(texts)} features together, but its unet takes {takes}"


FAMILY = Family(
    name="sdxl",
    pipeline="StableDiffusionXLPipeline",
    backbone_class="UNet2DConditionModel",
    backbones=("unet",),
    blocks=unet.BLOCKS,
    keep=unet.KEEP,
    size_step=unet.SIZE_STEP,
    spare=("text_encoder", "tokenizer"),
    misfit=misfit,
    reads=unet.READS,
    convolutions=True,
    unbatched=("timestep",),
    nested={"text_embeds": "added_cond_kwargs", "time_ids": "added_cond_kwargs"},
    block_cache=False,
    cached=unet.CACHED,
    resizable=True,
    original={"batch_size": (1, 8)},
    arguments=unet.arguments,
    conditions=conditions,
    noisy="sample",
    density="uniform",
    embed=embed,
    embeddings=embeddings,
    inputs=inputs,
)
