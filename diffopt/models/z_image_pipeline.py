"""Z-Image given what `embed` made of prompts: tensors with masks instead of lists of tensors."""

from typing import Any

import diffusers
import torch

Plain: Any = diffusers.ZImagePipeline


class ZImagePipeline(Plain):  # type: ignore[misc]
    """diffusers' pipeline adds lists to each other, so that a batch of embeddings in one tensor would be summed."""

    def __call__(
        self,
        *args: Any,
        prompt_embeds: Any = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        negative_prompt_embeds: Any = None,
        negative_prompt_embeds_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Embeddings may be [b, tokens, d] besides, with masks, bool [b, tokens], of what is no padding."""
        return super().__call__(
            *args,
            prompt_embeds=_rows(prompt_embeds, prompt_embeds_mask),
            negative_prompt_embeds=_rows(negative_prompt_embeds, negative_prompt_embeds_mask),
            **kwargs,
        )


def _rows(states: Any, mask: torch.Tensor | None) -> Any:
    if not isinstance(states, torch.Tensor):
        return states
    return [x if mask is None else x[mask[i]] for i, x in enumerate(states)]
