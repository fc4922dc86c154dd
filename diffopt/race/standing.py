"""What a race has found when it ends: the setting to ship, the runner-up, ties, and what is left in doubt."""

from collections.abc import Sequence

from diffopt.files.race import Ending
from diffopt.metrics.intervals import interval
from diffopt.race.contestant import Contestant


def kept(one: Contestant) -> bool:
    """Whether its pictures show that it keeps every floor: at some look, or all of them by their 95% intervals."""
    return one.shown or one.drawn.surely


def chosen(field: Sequence[Contestant], *, costs: bool = True) -> Contestant | None:
    """Of those still in the race the cheapest that is shown to keep every floor, else whose means do; of equal costs the
    best."""
    there = [c for c in field if c.lives and c.scores and c.drawn.keeps]
    sure = [c for c in there if kept(c)]
    return _first(sure or there, costs)


def _first(field: Sequence[Contestant], costs: bool) -> Contestant | None:
    """The best of those that are surely not beaten in cost by the cheapest."""
    if not field:
        return None
    cheapest = min(field, key=lambda c: c.cost.value)
    same = [c for c in field if not costs or c is cheapest or not cheapest.cost.below(c.cost)]
    return max(same, key=lambda c: (c.mean, -c.number))


def ending(field: Sequence[Contestant], answer: Contestant, *, costs: bool = True) -> Ending:
    others = [c for c in field if c is not answer and c.scores]
    keeping = [c for c in others if c.drawn.keeps]
    runner = _first([c for c in keeping if c.lives], costs) or min(
        keeping, key=lambda c: ((c.cost.value if costs else 0.0), -c.mean), default=None
    )
    ties = [c.number for c in others if c.lives and c.drawn.keeps and _same(answer, c, costs) and not _apart(answer, c)]
    doubtful = [c.number for c in others if costs and c.lives and c.cost.below(answer.cost) and c.drawn.keeps and not kept(c)]
    return Ending(runner_up=runner.number if runner else None, ties=ties, doubtful=doubtful)


def _same(one: Contestant, other: Contestant, costs: bool) -> bool:
    return not costs or not (one.cost.below(other.cost) or other.cost.below(one.cost))


def _apart(one: Contestant, other: Contestant) -> bool:
    """Whether the pictures of both tell which is better."""
    n = min(one.n, other.n)
    ends = interval(one.drawn.worth[:n] - other.drawn.worth[:n]).ends
    return ends is not None and (ends[0] > 0 or ends[1] < 0)
