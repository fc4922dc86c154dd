"""Which job of a sweep to ship under the floors: the cheapest that keeps them."""

from dataclasses import dataclass
from typing import Literal

from diffopt.errors import ConfigError, suggestion
from diffopt.files.interval import Interval
from diffopt.quality.floor import share
from diffopt.quality.limit import Limit
from diffopt.sweep.cost import Cost
from diffopt.sweep.job_table import Row
from diffopt.sweep.ranking import first_metric, worth
from diffopt.text import with_interval


@dataclass(frozen=True)
class Verdict:
    """Whether one job keeps one floor."""

    floor: Limit
    keeps: bool
    """Whether its mean does."""
    margin: Interval
    """Mean over the pictures with its interval, in the metric's unit; positive is on the right side."""

    @property
    def says(self) -> Literal["kept", "broken", "not shown", "too few"]:
        """`not shown` where the interval reaches to both sides, `too few` where there is none."""
        if self.margin.ends is None:
            return "too few"
        low, high = self.margin.ends
        return "kept" if low >= 0 else "broken" if high < 0 else "not shown"


def judge(row: Row, floors: list[Limit]) -> list[Verdict]:
    """A verdict a floor; none at all for a job that was not measured in each of them."""
    if any(f.metric not in row.metrics for f in floors):
        return []
    measured = [(f, row.metrics[f.metric]) for f in floors]
    return [Verdict(f, f.keeps(metric), f.margin(metric)) for f, metric in measured]


def check(floors: list[Limit], rows: list[Row]) -> None:
    """Raises ConfigError for a floor under a metric that no job measured, or with no reference to measure it from.

    A sweep in which nothing was measured is left alone: its page says why.
    """
    measured = {name: r for r in reversed(rows) for name in r.metrics}
    for floor in floors if measured else []:
        if floor.metric not in measured:
            raise ConfigError(f"floor: no job measured it (got {floor.text}); {suggestion(floor.metric, measured)}")
        floor.bound(measured[floor.metric].metrics[floor.metric])


@dataclass(frozen=True)
class Pick:
    """The job to ship under the floors, by one cost."""

    cost: Cost | None
    row: Row
    shown: bool
    """Whether the sample shows that it keeps every floor; else only its means do."""
    cheaper: Row | None
    """One that costs less, whose means keep the floors too, but which the sample does not show to keep them."""

    @property
    def word(self) -> str:
        return {"size": "smallest", "time": "fastest"}[self.cost.name] if self.cost else "best"

    @property
    def keeps(self) -> str:
        """Of the job: what is known of it."""
        return "that keeps" if self.shown else "whose mean keeps"


def pick(rows: list[Row], verdicts: dict[str, list[Verdict]], cost: Cost | None) -> Pick | None:
    """The cheapest job shown to keep every floor, else the cheapest whose means keep them; the better one of equal costs."""
    name = first_metric(rows)

    def order(row: Row) -> tuple[float, float]:
        return (cost.rank(row.job) if cost else 0.0, -worth(row, name))

    there = [r for r in rows if verdicts.get(r.job) and (cost is None or r.job in cost.values)]
    keeping = sorted((r for r in there if all(v.keeps for v in verdicts[r.job])), key=order)
    shown = [r for r in keeping if all(v.says == "kept" for v in verdicts[r.job])]
    if not keeping:
        return None
    chosen = (shown or keeping)[0]
    first = keeping[0]
    return Pick(cost, chosen, bool(shown), first if cost and order(first)[0] < order(chosen)[0] else None)


def nearest(rows: list[Row], verdicts: dict[str, list[Verdict]]) -> tuple[Row, Verdict] | None:
    """Where no job keeps the floors: the one whose worst margin is least bad, as a share of the metric, and that margin."""

    def kept(row: Row, verdict: Verdict) -> float:
        return share(row.metrics[verdict.floor.metric], verdict.floor)

    worst = [(r, min(verdicts[r.job], key=lambda v: kept(r, v))) for r in rows if verdicts.get(r.job)]
    return max(worst, key=lambda w: kept(*w)) if worst else None


def margin_text(row: Row, verdict: Verdict) -> str:
    """`0.12 [0.02, 0.22]` with the metric's unit; of few pictures the margin of each."""
    return with_interval(verdict.margin, row.metrics[verdict.floor.metric].unit)
