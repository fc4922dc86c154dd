"""LPIPS: learned perceptual distance of a picture from its reference (Zhang et al. 2018).

Range 0, when identical, to about 1; lower is better. AlexNet, version 0.1, on RGB scaled to -1..1 at full size, by
torchmetrics, which brings the heads. The backbone is torchvision's AlexNet of ImageNet,
`$TORCH_HOME/hub/checkpoints/alexnet-owt-7be5be79.pth` (233 MiB, downloaded where there is a network).
"""

from typing import Any

from diffopt.errors import MetricError
from diffopt.metrics.metric import Metric, Scorer, Weights

BACKBONE = "alexnet-owt-7be5be79.pth"


class Lpips(Scorer):
    def __init__(self, weights: Weights):
        from torch.hub import get_dir
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self.device = weights.device
        try:
            metric = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
        except Exception as e:  # torch.hub passes on whatever the network or the file raised
            reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:160]
            raise MetricError(
                f"lpips: its backbone cannot be loaded ({reason}) (got {BACKBONE!r}); "
                f"put torchvision's file of that name into {get_dir()}/checkpoints"
            ) from None
        self.net = metric.net.eval().to(self.device)

    def score(self, pictures: list[Any], prompts: list[str], references: list[Any] | None) -> list[float]:
        import torch

        assert references is not None
        found = []
        for ours, theirs in zip(pictures, references, strict=True):  # one by one: pictures need not be of one size
            pair = [torch.from_numpy(p.copy()).permute(2, 0, 1)[None].to(self.device) / 255 for p in (ours, theirs)]
            with torch.inference_mode():
                found.append(float(self.net(*pair, normalize=True)))
        return found


METRIC = Metric("lpips", "LPIPS", "", "lower", "pair", Lpips)
