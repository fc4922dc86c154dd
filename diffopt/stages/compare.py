"""compare: the candidate against each further one of `eval.compare`, in every metric, picture by picture."""

from dataclasses import replace
from typing import Annotated

from diffopt.artifact import Comparison, Images, Metrics
from diffopt.files.comparison import Compared, ComparedMetric, ComparisonFile
from diffopt.files.images import ImagesFile
from diffopt.files.metrics import MetricResult, MetricsFile
from diffopt.groups import alternatives
from diffopt.groups.eval import AlternativeName, Eval
from diffopt.stage import COMPARED, Context, stage
from diffopt.view import View


class CompareView(View, of=Eval):
    compare: list[AlternativeName]


@stage(version=1, when="eval")
def compare(
    ctx: Context,
    eval: CompareView,
    metrics: Metrics,
    images: Images,
    others: Annotated[tuple[Metrics, ...], COMPARED],
    pictures: Annotated[tuple[Images, ...], COMPARED],
) -> Comparison:
    ours, saved = MetricsFile.read(metrics.path).metrics, ImagesFile.read(images.path).cache
    compared = []
    for name, other, drawn in zip(eval.compare, others, pictures, strict=True):
        theirs, index, kind = MetricsFile.read(other.path).metrics, ImagesFile.read(drawn.path), alternatives.ALTERNATIVES[name]
        row = Compared(
            name=name,
            title=kind.title(index),
            steps=index.steps,
            arithmetic=index.arithmetic,
            computed=saved.computed if saved else None,
            metrics={n: _one(kind.ours, m, theirs[n]) for n, m in ours.items()},
        )
        compared.append(row)
    ComparisonFile(tuple(compared)).write(ctx.out)


def _one(who: str, ours: MetricResult, theirs: MetricResult) -> ComparedMetric:
    """Of one metric, of which both judged the same prompts and seeds."""
    import numpy as np

    from diffopt.metrics.intervals import interval
    from diffopt.quality import verdict

    found = ComparedMetric(ours.title, ours.unit, ours.better, ours.candidate, theirs.candidate)
    if ours.values is None or theirs.values is None:
        return found
    difference = interval(np.array(ours.values) - np.array(theirs.values))
    said = verdict.of_alternative(who, difference, ours.better, ours.unit)
    return replace(found, difference=difference, verdict=said)
