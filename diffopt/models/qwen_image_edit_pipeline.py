"""Qwen-Image-Edit given its picture as a tensor."""

from typing import Any

import diffusers
import torch
from PIL import Image

Plain: Any = diffusers.QwenImageEditPlusPipeline


class QwenImageEditPlusPipeline(Plain):  # type: ignore[misc]
    """diffusers' asks a picture for its size as PIL has it, so that it takes no tensor, in spite of what it says."""

    def __call__(self, image: Any = None, *args: Any, **kwargs: Any) -> Any:
        """`image` may be [1, 3, h, w] in 0..1 besides."""
        if isinstance(image, torch.Tensor):
            shown = (image * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            image = [Image.fromarray(x) for x in shown]
        return super().__call__(image, *args, **kwargs)
