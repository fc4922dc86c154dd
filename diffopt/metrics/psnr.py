"""Peak signal-to-noise ratio of a picture against its reference, in dB: 10 log10(255^2 / mean squared difference).

Over 8-bit RGB. Identical pictures have no noise; they get IDENTICAL, which is above what one changed level can reach
in any picture of up to 40 megapixels, so that means stay finite.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from skimage.metrics import peak_signal_noise_ratio

IDENTICAL = 130.0


def scorer(clip: Any, device: str) -> Callable[..., list[float]]:
    def score(prompts: Sequence[str], candidates: list[np.ndarray], references: list[np.ndarray]) -> list[float]:
        return [psnr(c, r) for c, r in zip(candidates, references, strict=True)]

    return score


def psnr(candidate: np.ndarray, reference: np.ndarray) -> float:
    """Both uint8 [height, width, 3]."""
    if np.array_equal(candidate, reference):
        return IDENTICAL
    return float(peak_signal_noise_ratio(reference, candidate, data_range=255))
