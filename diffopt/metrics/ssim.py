"""Structural similarity of a picture against its reference, -1..1, 1 when identical.

Wang et al. 2004 with their Gaussian window (sigma 1.5, 11 pixels) over 8-bit RGB, by scikit-image.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from skimage.metrics import structural_similarity


def scorer(clip: Any, device: str) -> Callable[..., list[float]]:
    def score(prompts: Sequence[str], candidates: list[np.ndarray], references: list[np.ndarray]) -> list[float]:
        return [ssim(c, r) for c, r in zip(candidates, references, strict=True)]

    return score


def ssim(candidate: np.ndarray, reference: np.ndarray) -> float:
    """Both uint8 [height, width, 3], at least 11 pixels each way."""
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(reference, candidate, channel_axis=2, data_range=255, **window))
