"""score: every metric on every picture, candidate against reference, with intervals and verdicts.

`difference/NNN.png` is 8 x the absolute difference of a pair.
"""

from diffopt.artifact import Images, Metrics, ReferenceImages
from diffopt.files.metrics import MetricsFile
from diffopt.groups.eval import Eval, MetricName
from diffopt.stage import Context, stage
from diffopt.store.source import ScorerSource
from diffopt.view import Choices, View

GAIN = 8


class ScoreView(View, of=Eval):
    metrics: list[MetricName]
    clip: ScorerSource | None
    imagereward: ScorerSource | None
    features: ScorerSource | None

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        from diffopt.metrics import METRICS, SOURCES

        chosen = choices.eval.metrics if choices.eval else []
        return cls.fields_read() - (set(SOURCES) - {source for name in chosen for source in METRICS[name].needs})


@stage(version=2, when="eval", probes=("numerics", "scorers"))
def score(ctx: Context, eval: ScoreView, reference: ReferenceImages, images: Images) -> Metrics:
    from diffopt.data import pictures
    from diffopt.errors import GateError, MetricError
    from diffopt.metrics import METRICS, Weights
    from diffopt.quality.scoring import batch, measure
    from diffopt.quality.summary import entries

    prompts, ours = pictures.paths(images.path)
    _, theirs = pictures.paths(reference.path)
    judged = {"reference": pictures.frames(reference.path), "candidate": pictures.frames(images.path)}
    needed = dict.fromkeys(source for name in eval.metrics for source in METRICS[name].needs)
    weights = Weights({s: ctx.locate(ctx.digest(getattr(eval, s))) for s in needed}, ctx.device)
    scorers = {name: METRICS[name].open(weights) for name in eval.metrics}
    with ctx.progress(2 * -(-len(prompts) // batch(judged))) as tick:
        measured = measure(prompts, judged, scorers, "reference", tick, ctx.device)
    if measured.flaws:
        raise GateError("\n".join(measured.flaws))
    if measured.failed:
        raise MetricError("\n".join(measured.failed.values()))
    found = entries(measured, scorers)
    pictures.save_differences(ctx.out / "difference", ours, theirs, GAIN)
    many = len(judged["reference"][0])
    MetricsFile(prompts, found, GAIN, many if many > 1 else None).write(ctx.out)
