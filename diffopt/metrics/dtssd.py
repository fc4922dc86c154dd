"""dtSSD: how much a video moves otherwise than its reference does, in levels of 255 (Erofeev et al. 2015, for mattes).

Range 0, when every pixel changes from frame to frame as the reference's does, to 510; lower is better; of videos alone. No
weights. Of each two neighbouring frames that are judged: the root mean square, over pixels and channels of 8-bit RGB, of
(candidate's change - reference's change); then the mean over the frames. The authors sum where here means are taken. A
constant error of colour costs nothing, flicker of the same size all of it: what PSNR of single frames cannot tell apart.
"""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from diffopt.metrics.metric import Metric, Scorer, Weights

if TYPE_CHECKING:
    import numpy as np


class Dtssd(Scorer):
    def __init__(self, weights: Weights):
        pass

    def score(self, pictures: list[Any], prompts: list[str], references: list[Any] | None) -> list[float]:
        assert references is not None
        return [dtssd(c, r) for c, r in zip(pictures, references, strict=True)]


def dtssd(candidate: "list[np.ndarray]", reference: "list[np.ndarray]") -> float:
    """The frames of each, uint8 [height, width, 3], at least two. Raises ValueError for another number of frames."""
    import numpy as np

    wrong = [o.astype(np.float32) - t for o, t in zip(candidate, reference, strict=True)]
    return float(np.mean([np.sqrt(np.mean((b - a) ** 2)) for a, b in pairwise(wrong)]))


METRIC = Metric("dtssd", "dtSSD", "levels", "lower", "pair", Dtssd, of_video=True)
