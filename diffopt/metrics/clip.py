"""CLIP score: 100 x the cosine of a picture's and its prompt's embedding (Hessel et al. 2021, without their clamp at 0).

Range -100 to 100, in practice 20 to 35 with the default model; higher is better; only comparable between pictures that the
same model scored. Weights: a CLIP, `openai/clip-vit-large-patch14` (1.7 GB) for published numbers, or any other by hub id
or directory, of transformers or open_clip.

Preprocessing of the published numbers (Model-Optimizer's evaluation, by torchmetrics' CLIPScore): 8-bit RGB through the
model's own processor: the shorter side resized to 224 pixels (bicubic, antialiased), centre crop of 224 x 224, scaled
by 1/255, normalized by CLIP's mean and deviation; the prompt cut at 77 tokens. The same here. torchmetrics clamps the
mean over all pictures at 0, which no real set reaches; its CLIPScore breaks on transformers 5.
"""

from typing import TYPE_CHECKING, Any

from diffopt.metrics.metric import Metric, Scorer, Weights

if TYPE_CHECKING:
    import numpy as np


class Clip(Scorer):
    def __init__(self, weights: Weights):
        self.encoder = weights.encoder("clip")
        self.prepare = self.encoder.prepare

    def score(self, pictures: list[Any], prompts: list[str], references: list[Any] | None) -> "np.ndarray":
        from torch.nn.functional import cosine_similarity

        found = 100 * cosine_similarity(self.encoder.pictures(pictures), self.encoder.texts(prompts))
        return found.cpu().numpy()


METRIC = Metric("clip", "CLIP score", "", "higher", "picture", Clip, needs=("clip",), of_text=True)
