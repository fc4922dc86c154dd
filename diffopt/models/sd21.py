"""Stable Diffusion 2.1, and everything else that StableDiffusionPipeline loads."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffopt.models import unet
from diffopt.models.family import Family, Json, paired, present

if TYPE_CHECKING:
    import torch


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """CLIP's states [b, 77, cross_attention_dim]."""
    guided = FAMILY.guided(model)
    negative_prompt = [model.negative_prompt] * len(prompts) if guided else None
    states, negative = pipe.encode_prompt(prompts, pipe._execution_device, 1, guided, negative_prompt)
    return present(prompt_embeds=states, negative_prompt_embeds=negative)


def embeddings(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    return paired({"prompt_embeds": (prompts, unet.CLIP, config["cross_attention_dim"])}, FAMILY.guided(model))


def conditions(texts: Mapping[str, "torch.Tensor"], noisy: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    return {"encoder_hidden_states": texts["prompt_embeds"]}


FAMILY = Family(
    name="sd21",
    pipeline="StableDiffusionPipeline",
    backbone_class="UNet2DConditionModel",
    backbones=("unet",),
    blocks=unet.BLOCKS,
    keep=unet.KEEP,
    size_step=unet.SIZE_STEP,
    reads=unet.READS,
    convolutions=True,
    unbatched=("timestep",),
    block_cache=False,
    cached=unet.CACHED,
    resizable=True,
    arguments=unet.arguments,
    conditions=conditions,
    noisy="sample",
    density="uniform",
    embed=embed,
    embeddings=embeddings,
    inputs=unet.inputs,
)
