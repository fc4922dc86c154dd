"""CLIP-IQA: how much nearer a picture is to "Good photo." than to "Bad photo." (Wang, Chan and Loy 2023).

Range 0 to 1; higher is better; the prompt plays no part. The softmax over 100 x the cosines with the two texts. Weights: a
CLIP, `openai/clip-vit-large-patch14` (1.7 GB) for published numbers, shared with the CLIP score.

Preprocessing of the published numbers (Model-Optimizer's evaluation, by torchmetrics' CLIPImageQualityAssessment with
`openai/clip-vit-large-patch14`, quality prompts): that of the CLIP score, by the model's own processor. The paper's own
model, a ResNet-50 without position embedding on pictures of full size, gives other values.
"""

from typing import TYPE_CHECKING, Any

from diffopt.metrics.metric import Metric, Scorer, Weights

if TYPE_CHECKING:
    import numpy as np

ANCHORS = ["Good photo.", "Bad photo."]
SCALE = 100.0


class ClipIqa(Scorer):
    def __init__(self, weights: Weights):
        from torch.nn.functional import normalize

        self.encoder = weights.encoder("clip")
        self.prepare = self.encoder.prepare
        self.anchors = normalize(self.encoder.texts(ANCHORS), dim=-1)

    def score(self, pictures: list[Any], prompts: list[str], references: list[Any] | None) -> "np.ndarray":
        from torch.nn.functional import normalize

        cosines = normalize(self.encoder.pictures(pictures), dim=-1) @ self.anchors.T
        return (SCALE * cosines).softmax(-1)[:, 0].cpu().numpy()


METRIC = Metric("clip-iqa", "CLIP-IQA", "", "higher", "picture", ClipIqa, needs=("clip",))
