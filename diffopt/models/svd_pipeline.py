"""Stable Video Diffusion given what `embed` made of a picture, and pictures as it takes them."""

from collections.abc import Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

Plain: Any = diffusers.StableVideoDiffusionPipeline


class StableVideoDiffusionPipeline(Plain):  # type: ignore[misc]
    """diffusers' pipeline takes a picture alone; this one also what its CLIP makes of it, and needs no CLIP then."""

    given: torch.Tensor | None = None

    def __call__(self, image: Any, *args: Any, image_embeddings: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """`image_embeddings` is [b, 1, d]."""
        self.given = image_embeddings
        try:
            return super().__call__(image, *args, **kwargs)
        finally:
            self.given = None

    def _encode_image(
        self, image: Any, device: Any, num_videos_per_prompt: int, do_classifier_free_guidance: bool
    ) -> torch.Tensor:
        if self.given is None:
            found: torch.Tensor = super()._encode_image(image, device, num_videos_per_prompt, do_classifier_free_guidance)
            return found
        states = self.given.to(device)
        return torch.cat([torch.zeros_like(states), states]) if do_classifier_free_guidance else states


def pixels(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """uint8 [b, 3, h, w]."""
    return torch.stack([torch.from_numpy(np.array(x)).permute(2, 0, 1) for x in pictures]).contiguous()
