"""Stable Video Diffusion given what `embed` made of a picture, and pictures as it takes them."""

from collections.abc import Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image, ImageOps

from diffopt.data import picture
from diffopt.errors import PlanError

Plain: Any = diffusers.StableVideoDiffusionPipeline


class StableVideoDiffusionPipeline(Plain):  # type: ignore[misc]
    """diffusers' pipeline takes a picture alone; this one also what its CLIP makes of it, and needs no CLIP then."""

    given: torch.Tensor | None = None

    def __call__(self, image: Any, *args: Any, image_embeddings: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """`image` may be uint8 [b, 3, h, w] besides; `image_embeddings` is [b, 1, d]."""
        if isinstance(image, torch.Tensor) and image.dtype == torch.uint8:
            # Channels last, as diffusers has a PIL picture: a convolution's last bits depend on it.
            image = image.float().contiguous(memory_format=torch.channels_last) / 255
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


def fitted(path: str, width: int, height: int) -> Image.Image:
    """The picture in the size that is drawn, cropped about its middle. Raises PlanError for a file that is no picture."""
    try:
        return ImageOps.fit(picture.opened(path), (width, height), Image.Resampling.LANCZOS)
    except picture.BROKEN as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0][:160]
        raise PlanError(f"prompts: a picture cannot be read: {reason} (got {path!r}); mend or remove it") from None


def pixels(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """uint8 [b, 3, h, w]."""
    return torch.stack([torch.from_numpy(np.array(x)).permute(2, 0, 1) for x in pictures]).contiguous()
