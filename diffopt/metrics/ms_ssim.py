"""MS-SSIM: structural similarity of a picture against its reference at five scales.

Range 0 to 1, 1 when identical; higher is better. No weights. Wang, Simoncelli and Bovik 2003 with their five exponents and
an 11-pixel Gaussian window of sigma 1.5, over 8-bit RGB at full size, the mean of the channels, by pytorch-msssim
(torchmetrics' takes the last scale's mean over windows that leave the picture too). The smallest scale must hold the
window, so pictures need more than 160 pixels a side.
"""

from typing import Any

from diffopt.errors import MetricError
from diffopt.metrics.metric import Metric, Scorer, Weights

SMALLEST = 161  # pixels: more than (11 - 1) x 2^4


class MsSsim(Scorer):
    def __init__(self, weights: Weights):
        self.device = weights.device

    def score(self, pictures: list[Any], prompts: list[str], references: list[Any] | None) -> list[float]:
        import torch
        from pytorch_msssim import ms_ssim

        assert references is not None
        found = []
        for ours, theirs in zip(pictures, references, strict=True):  # one by one: pictures need not be of one size
            if min(ours.shape[:2]) < SMALLEST:
                height, width = ours.shape[:2]
                raise MetricError(
                    f"ms-ssim: needs pictures of {SMALLEST} pixels a side and more (got {width} x {height}); take ssim instead"
                )
            a, b = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None].to(self.device, torch.float32) for p in (ours, theirs))
            found.append(float(ms_ssim(a, b, data_range=255)))
        return found


METRIC = Metric("ms-ssim", "MS-SSIM", "", "higher", "pair", MsSsim, smallest=SMALLEST)
