"""score: every metric on every picture, candidate against reference, with intervals.

`metrics.json`, schema diffopt.metrics/1:
    prompts                     the prompts, in order
    difference_gain             by how much the difference pictures are amplified
    metrics.NAME.title          the metric's name for people
    metrics.NAME.unit, better   its unit and which way is better
    metrics.NAME.candidate      {mean, low, high, n}: mean and 95% bootstrap interval over the pictures
    metrics.NAME.values         the value of every picture
    metrics.NAME.reference      for scores of one picture: the same of the reference,
    metrics.NAME.reference_values  its values,
    metrics.NAME.difference     and candidate - reference, pair by pair, with its interval
`difference/NNN.png` is 8 x the absolute difference of a pair.
"""

import json
from typing import Any, Literal

from diffopt.artifact import Images, Metrics, ReferenceImages
from diffopt.groups import Eval
from diffopt.metrics import METRICS
from diffopt.source import ModelSource
from diffopt.stage import Context, stage
from diffopt.view import Choices, View

GAIN = 8


class ScoreView(View, of=Eval):
    metrics: list[Literal["psnr", "ssim", "clip"]]
    clip: ModelSource | None

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        scores = choices.eval is not None and "clip" in choices.eval.metrics
        return cls.drawn_from() - (frozenset() if scores else {"clip"})


@stage(version=1, when="eval", probes=("numerics", "skimage"))
def score(ctx: Context, eval: ScoreView, reference: ReferenceImages, images: Images) -> Metrics:
    import numpy as np
    from PIL import Image

    from diffopt import pictures
    from diffopt.statistics import interval

    prompts = [prompt for prompt, _ in pictures.read(images.path)]
    candidates = [picture for _, picture in pictures.read(images.path)]
    references = [picture for _, picture in pictures.read(reference.path)]
    clip = ctx.locate(ctx.digest(eval.clip)) if eval.clip and "clip" in eval.metrics else None
    found: dict[str, Any] = {}
    for name in eval.metrics:
        metric = METRICS[name]
        scorer = metric.scorer(clip, ctx.device)
        values = np.array(scorer(prompts, candidates, references) if metric.paired else scorer(prompts, candidates))
        found[name] = {
            "title": metric.title,
            "unit": metric.unit,
            "better": metric.better,
            "candidate": interval(values),
            "values": values.tolist(),
        }
        if not metric.paired:
            theirs = np.array(scorer(prompts, references))
            found[name] |= {
                "reference": interval(theirs),
                "reference_values": theirs.tolist(),
                "difference": interval(values - theirs),
            }
    folder = ctx.out / "difference"
    folder.mkdir()
    for i, (ours, theirs) in enumerate(zip(candidates, references, strict=True)):
        apart = np.abs(ours.astype(np.int16) - theirs.astype(np.int16)) * GAIN
        Image.fromarray(apart.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03}.png")
    content = {"schema": "diffopt.metrics/1", "prompts": prompts, "metrics": found, "difference_gain": GAIN}
    (ctx.out / "metrics.json").write_text(json.dumps(content, indent=1))
