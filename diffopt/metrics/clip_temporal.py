"""CLIP temporal consistency: 100 x the mean cosine of each two neighbouring frames' embeddings (EvalCrafter's CLIP-Temp,
Liu et al. 2024; VBench's background consistency, Huang et al. 2024, is of the same kind).

Range -100 to 100, in practice 95 to 100; higher is better, though a video that stands still has 100; the prompt plays no
part; of videos alone. Neighbours are frames that are judged: with fewer than all (`eval.frames`) they are further apart, and
the value lower than the published one, so it compares only with the same number of frames. Weights: a CLIP,
`openai/clip-vit-large-patch14` (1.7 GB), shared with the CLIP score; preprocessing by its own processor.
"""

from typing import TYPE_CHECKING, Any

from diffopt.metrics.metric import Metric, Scorer, Weights

if TYPE_CHECKING:
    import numpy as np


class ClipTemporal(Scorer):
    def __init__(self, weights: Weights):
        self.encoder = weights.encoder("clip")
        self.prepare = self.encoder.prepare

    def score(self, pictures: list[Any], prompts: list[str], references: list[Any] | None) -> "np.ndarray":
        import numpy as np
        from torch.nn.functional import normalize

        embedded = normalize(self.encoder.pictures([frame for video in pictures for frame in video]), dim=-1)
        videos = embedded.split([len(video) for video in pictures])
        return np.array([100 * float((v[:-1] * v[1:]).sum(-1).mean()) for v in videos])


METRIC = Metric(
    "clip-temporal", "CLIP temporal consistency", "", "higher", "picture", ClipTemporal, needs=("clip",), of_video=True
)
"""Judges one video, as a metric of pictures judges one picture."""
