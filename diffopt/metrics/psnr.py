"""PSNR: peak signal-to-noise ratio of a picture against its reference, in dB: 10 log10(255^2 / mean squared difference).

Range 0 to IDENTICAL; higher is better. No weights. Over 8-bit RGB at full size, as published beside SVDQuant (Li et al.
2024). Identical pictures have no noise; they get IDENTICAL, which is above what one changed level can reach in any
picture of up to 40 megapixels, so that means stay finite.
"""

from typing import TYPE_CHECKING, Any

from diffopt.metrics.metric import Metric, Scorer, Weights

if TYPE_CHECKING:
    import numpy as np

IDENTICAL = 130.0


class Psnr(Scorer):
    def __init__(self, weights: Weights):
        pass

    def score(self, pictures: list[Any], prompts: list[str], references: list[Any] | None) -> list[float]:
        assert references is not None
        return [psnr(c, r) for c, r in zip(pictures, references, strict=True)]


def psnr(candidate: "np.ndarray", reference: "np.ndarray") -> float:
    """Both uint8 [height, width, 3]."""
    import numpy as np
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(candidate, reference):
        return IDENTICAL
    return float(peak_signal_noise_ratio(reference, candidate, data_range=255))


METRIC = Metric("psnr", "PSNR", "dB", "higher", "pair", Psnr)
