"""Wan's image to video for a batch of prompts, each with a picture of its own."""

from inspect import signature
from typing import Any

import diffusers
import torch

Plain: Any = diffusers.WanImageToVideoPipeline


class WanImageToVideoPipeline(Plain):  # type: ignore[misc]
    """diffusers' encodes all pictures once for each of several generators, so that there are too many of them."""

    def prepare_latents(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        asked = signature(super().prepare_latents).bind(*args, **kwargs).arguments
        generators, image = asked.get("generator"), asked["image"]
        if not isinstance(generators, list) or len(image) != len(generators) or len(image) == 1:
            whole: tuple[torch.Tensor, ...] = super().prepare_latents(**asked)
            return whole
        own = asked | {"batch_size": 1}
        rows = []
        for i, generator in enumerate(generators):
            each = {n: asked[n][i : i + 1] for n in ("image", "latents", "last_image") if asked.get(n) is not None}
            rows.append(super().prepare_latents(**own | each | {"generator": [generator]}))
        return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
