"""CLIP score: 100 x the cosine of a picture's and its prompt's embedding (Hessel et al. 2021, without their clamp at 0).

Roughly -100..100; only comparable between pictures scored by the same CLIP model. Pictures pass through the model's
own processor. torchmetrics' CLIPScore is not used: it breaks on transformers 5 and takes no local directory.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPModel, CLIPProcessor

BATCH = 32


def scorer(clip: Path, device: str) -> Callable[..., list[float]]:
    """`clip` is the directory of a transformers CLIPModel with its processor."""
    model = CLIPModel.from_pretrained(clip).eval().to(device)
    processor = CLIPProcessor.from_pretrained(clip)

    def score(prompts: Sequence[str], pictures: list[np.ndarray]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(pictures), BATCH):
            texts, images = list(prompts[start : start + BATCH]), pictures[start : start + BATCH]
            inputs = processor(text=texts, images=images, return_tensors="pt", padding=True, truncation=True).to(device)
            with torch.inference_mode():
                out = model(**inputs)
            found += (100 * (out.image_embeds * out.text_embeds).sum(-1)).tolist()
        return found

    return score
