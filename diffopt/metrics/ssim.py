"""SSIM: structural similarity of a picture against its reference.

Range -1 to 1, 1 when identical; higher is better. No weights. Wang et al. 2004 with their Gaussian window (sigma 1.5,
11 pixels) over 8-bit RGB at full size, the mean of the channels, by scikit-image.
"""

from typing import TYPE_CHECKING, Any

from diffopt.errors import MetricError
from diffopt.metrics.metric import Metric, Scorer, Weights

if TYPE_CHECKING:
    import numpy as np

WINDOW = 11


class Ssim(Scorer):
    def __init__(self, weights: Weights):
        pass

    def score(self, pictures: list[Any], prompts: list[str], references: list[Any] | None) -> list[float]:
        assert references is not None
        return [ssim(c, r) for c, r in zip(pictures, references, strict=True)]


def ssim(candidate: "np.ndarray", reference: "np.ndarray") -> float:
    """Both uint8 [height, width, 3], at least 11 pixels each way."""
    from skimage.metrics import structural_similarity

    if min(reference.shape[:2]) < WINDOW:
        height, width = reference.shape[:2]
        raise MetricError(f"ssim: its window is {WINDOW} pixels (got a picture of {width} x {height}); leave this metric out")
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(reference, candidate, channel_axis=2, data_range=255, **window))


METRIC = Metric("ssim", "SSIM", "", "higher", "pair", Ssim, smallest=WINDOW)
