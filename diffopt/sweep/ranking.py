"""Which jobs of a sweep are best, which cannot be told apart from the best, and which lie on a Pareto front."""

import math

from diffopt.files.interval import Interval
from diffopt.quality.direction import sign
from diffopt.sweep.cost import Cost
from diffopt.sweep.job_table import Row


def first_metric(rows: list[Row]) -> str | None:
    return next((name for r in rows for name in r.metrics), None)


def worth(row: Row, name: str | None) -> float:
    """The mean of the metric `name`, turned so that more is better; minus infinity where it was not measured."""
    if name is None or name not in row.metrics:
        return -math.inf
    return row.metrics[name].candidate.mean * sign(row.metrics[name].better)


def best(rows: list[Row]) -> Row | None:
    """The job with the best mean of the first metric; the earliest of equals."""
    name = first_metric(rows)
    return max(rows, key=lambda r: worth(r, name)) if name else None


def ahead(ours: Row, theirs: Row, name: str) -> Interval | None:
    """By how much `ours` is better in the metric, picture by picture, with the interval of that difference.

    None where there are no pairs: the two drew other prompts, or the metric judges sets of pictures.
    """
    if not (ours.run and theirs.run and ours.run.score and theirs.run.score):
        return None
    if ours.run.score.prompts != theirs.run.score.prompts or ours.metrics[name].values is None:
        return None
    import numpy as np

    from diffopt.metrics.intervals import interval

    values, others = (np.array(r.metrics[name].values, dtype=float) for r in (ours, theirs))
    return interval(sign(ours.metrics[name].better) * (values - others))


def ties(rows: list[Row], top: Row) -> list[Row]:
    """The other distinct jobs that the sample does not tell apart from the best, by the first metric.

    Judged by the interval of the paired difference; for jobs that drew other prompts by whether intervals overlap.
    """
    name = first_metric(rows)
    if name is None:
        return []
    found = []
    for row in rows:
        if row.distinct and row is not top and name in row.metrics:
            apart = ahead(top, row, name)
            ours, theirs = top.metrics[name].candidate.ends, row.metrics[name].candidate.ends
            if apart is not None:
                same = apart.ends is None or apart.ends[0] <= 0
            else:
                same = ours is None or theirs is None or (theirs[1] >= ours[0] and theirs[0] <= ours[1])
            found += [row] if same else []
    return found


def front(rows: list[Row], name: str | None, cost: Cost | None) -> list[Row]:
    """The distinct jobs that no other beats in mean quality and cost at once, the cheapest first.

    Empty where the cost is one for all: there is nothing to trade.
    """
    if cost is None or name is None:
        return []
    points = {r.job: (worth(r, name), -cost.rank(r.job)) for r in rows if name in r.metrics and r.job in cost.values}
    if len({p[1] for p in points.values()}) < 2:
        return []

    def beats(them: tuple[float, float], ours: tuple[float, float]) -> bool:
        return them != ours and all(t >= o for t, o in zip(them, ours, strict=True))

    kept = [r for r in rows if r.job in points and not any(beats(p, points[r.job]) for p in points.values())]
    return sorted(kept, key=lambda r: points[r.job][1], reverse=True)
