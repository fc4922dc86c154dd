"""Sana-Sprint: Sana, distilled with its guidance to a few steps of its own scheduler, whose training is not known here."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffopt.models import sana

if TYPE_CHECKING:
    import torch


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """As Sana's."""
    states, mask = pipe.encode_prompt(prompts, **sana.asked(pipe, model))
    return {"prompt_embeds": states, "prompt_attention_mask": mask}


FAMILY = replace(
    sana.FAMILY,
    name="sana_sprint",
    pipeline="SanaSprintPipeline",
    reads=frozenset({"guidance_scale", "max_sequence_length"}),
    guidance="none",
    conditions=None,
    embed=embed,
    embeddings=sana.shapes,
)
