"""CMMD: maximum mean discrepancy between the CLIP embeddings of two sets of pictures (Jayasumana et al. 2024).

Range 0, for equal sets, and up; lower is better. 1000 x the squared discrepancy under a Gaussian kernel of bandwidth 10 on
embeddings of length 1, diagonals included, as in the authors' code. Weights: the extractor that `features` names;
`openai/clip-vit-large-patch14-336` (1.7 GB) for published numbers, whose processor resizes (bicubic) to 336 pixels; the
authors' code resizes without a centre crop, which is the same for square pictures.

The interval is mean +- 1.96 x the deviation over bootstrapped sets, prompts resampled alike on both sides.
"""

from typing import TYPE_CHECKING, Any

from diffopt.files.interval import Interval
from diffopt.metrics.metric import Metric, SetScorer, Weights

if TYPE_CHECKING:
    import numpy as np

BANDWIDTH, SCALE, RESAMPLES = 10.0, 1000.0, 1000


class Cmmd(SetScorer):
    def __init__(self, weights: Weights):
        self.encoder = weights.encoder("features")
        self.prepare = self.encoder.prepare

    def score(self, pictures: list[Any], prompts: list[str], references: list[Any] | None) -> "np.ndarray":
        from torch.nn.functional import normalize

        return normalize(self.encoder.pictures(pictures), dim=-1).cpu().numpy()

    def distance(self, ours: "np.ndarray", theirs: "np.ndarray") -> Interval:
        import numpy as np

        from diffopt.metrics.intervals import around

        n = len(ours)
        kernel = _kernel(ours, ours) + _kernel(theirs, theirs) - _kernel(ours, theirs) - _kernel(theirs, ours)
        weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES) / n if n > 1 else np.empty((0, n))
        resampled = ((weights @ kernel) * weights).sum(1)
        return around(SCALE * float(kernel.mean()), [*(SCALE * resampled)], n)


def _kernel(a: "np.ndarray", b: "np.ndarray") -> "np.ndarray":
    """Of every pair of rows, [n, m]."""
    import numpy as np

    a, b = a.astype(np.float64), b.astype(np.float64)
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.exp(-squared.clip(0) / (2 * BANDWIDTH**2))  # type: ignore[no-any-return]


METRIC = Metric("cmmd", "CMMD", "", "lower", "set", Cmmd, needs=("features",))
