"""FID: Frechet distance between the features of two sets of pictures (Heusel et al. 2017), candidate against reference.

Range 0, for equal sets, and up; lower is better; only comparable for the same feature extractor and number of pictures,
since few pictures bias it upwards. Weights: the extractor that `features` names, through its own processor: a CLIP's
projected picture embedding (Kynkaanniemi et al. 2023) or another of transformers' image models' pooled output, such as
DINOv2 (Stein et al. 2023). The Inception network of the first papers is not among them: their numbers do not compare.

The interval is mean +- 1.96 x the deviation over bootstrapped sets, prompts resampled alike on both sides. Its centre is
the distance itself: a resampled set has pictures twice, which biases its own distance upwards.
"""

from typing import TYPE_CHECKING, Any

from diffopt.files.interval import Interval
from diffopt.metrics.metric import Metric, SetScorer, Weights

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 50  # each is a singular value decomposition; the deviation of 50 is known to a tenth


class Fid(SetScorer):
    def __init__(self, weights: Weights):
        self.encoder = weights.encoder("features")
        self.prepare = self.encoder.prepare

    def score(self, pictures: list[Any], prompts: list[str], references: list[Any] | None) -> "np.ndarray":
        return self.encoder.pictures(pictures).cpu().numpy()

    def distance(self, ours: "np.ndarray", theirs: "np.ndarray") -> Interval:
        import numpy as np

        from diffopt.metrics.intervals import around

        rng = np.random.default_rng(0)
        rows = rng.integers(0, len(ours), (RESAMPLES if len(ours) > 1 else 0, len(ours)))
        return around(frechet(ours, theirs), [frechet(ours[r], theirs[r]) for r in rows], len(ours))


def frechet(ours: "np.ndarray", theirs: "np.ndarray") -> float:
    """Squared distance of the means, plus tr(A + B - 2 (A B)^1/2) of the covariances; features [n, d] of each set.

    With A = a'a and B = b'b the last trace is the sum of the singular values of a b': no root of a d x d matrix is taken,
    which with fewer pictures than features is singular.
    """
    import numpy as np

    a, b = (x.astype(np.float64) for x in (ours, theirs))
    apart = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    a, b = ((x - x.mean(0)) / np.sqrt(max(len(x) - 1, 1)) for x in (a, b))
    if len(a) > a.shape[1]:  # the same covariances from d rows
        a, b = np.linalg.qr(a)[1], np.linalg.qr(b)[1]
    cross = float(np.linalg.svd(a @ b.T, compute_uv=False).sum())
    return max(apart + float((a**2).sum() + (b**2).sum()) - 2 * cross, 0.0)


METRIC = Metric("fid", "FID", "", "lower", "set", Fid, needs=("features",))
