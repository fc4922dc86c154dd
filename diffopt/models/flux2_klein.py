"""FLUX.2 klein: smaller blocks, and Qwen3 as its text encoder; the base models are guided, the others are distilled."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffopt.models import chat, flux2
from diffopt.models.family import Json, paired, with_negative

if TYPE_CHECKING:
    import torch


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """FLUX.2's, and with guidance those of an empty prompt, which is the only negative one."""
    empty = [""] * len(prompts)
    return with_negative(flux2.embed(pipe, prompts, model), lambda: flux2.embed(pipe, empty, model), FAMILY.guided(model))


def embeddings(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    return paired(flux2.embeddings(config, prompts, model), FAMILY.guided(model))


def unpack(pipe: Any, latents: "torch.Tensor", model: Any) -> "torch.Tensor":
    """[b, channels, h, w], as the VAE decodes them, back to normalised patches [b, 4 channels, h / 2, w / 2]."""
    return flux2.normalised(pipe.vae, latents)


FAMILY = replace(
    flux2.FAMILY,
    name="flux2_klein",
    pipeline="Flux2KleinPipeline",
    guidance="separate",
    distilled=lambda index: bool(index.get("is_distilled")),
    template=chat.thoughtless,
    embed=embed,
    embeddings=embeddings,
    inputs=flux2.tokens,
    unpack=unpack,
)
