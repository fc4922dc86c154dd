"""compare: the candidate against each further one of `eval.compare`, in every metric, picture by picture.

`comparison.json`, schema diffopt.comparison/1: `compared`, a list in the order of `eval.compare` of
    name, title                      what it is
    steps, arithmetic                of `fewer_steps`: its steps, and their share of the arithmetic of all
    computed                         the candidate's own share, where it has a cache
    metrics.NAME.title, unit, better as in metrics.json
    metrics.NAME.candidate, compared {mean, low, high, n} of each
    metrics.NAME.difference          candidate - compared, pair by pair, with its 95% bootstrap interval, and
    metrics.NAME.verdict             what that shows; neither of a metric that judges whole sets (FID, CMMD)
"""

import json
from typing import Annotated, Any

from diffopt.artifact import Comparison, Images, Metrics
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
    ours, about = metrics.json("metrics.json"), images.json("images.json")
    compared = []
    for name, other, drawn in zip(eval.compare, others, pictures, strict=True):
        theirs, index = other.json("metrics.json"), drawn.json("images.json")
        row: dict[str, Any] = {"name": name, "title": alternatives.ALTERNATIVES[name].title(index)}
        row |= {key: index[key] for key in ("steps", "arithmetic") if key in index}
        row |= {"computed": about["cache"]["computed"]} if "cache" in about else {}
        row["metrics"] = {
            n: _one(alternatives.ALTERNATIVES[name].ours, m, theirs["metrics"][n]) for n, m in ours["metrics"].items()
        }
        compared.append(row)
    (ctx.out / "comparison.json").write_text(json.dumps({"schema": "diffopt.comparison/1", "compared": compared}, indent=1))


def _one(who: str, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Of one metric, of which both judged the same prompts and seeds."""
    import numpy as np

    from diffopt.metrics.intervals import interval
    from diffopt.quality import verdict

    found = {key: ours[key] for key in ("title", "unit", "better", "candidate")} | {"compared": theirs["candidate"]}
    if "values" in ours:
        found["difference"] = interval(np.array(ours["values"]) - np.array(theirs["values"]))
        found["verdict"] = verdict.of_alternative(who, found["difference"], ours["better"], ours["unit"])
    return found
