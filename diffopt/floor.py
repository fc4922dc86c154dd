"""A floor under quality, and whether a job keeps it: judged picture by picture, with the interval."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from diffopt.cost import Cost
from diffopt.errors import ConfigError
from diffopt.figure import figure
from diffopt.job_table import Row
from diffopt.ranking import first_metric, turn, worth

IDENTICAL = {"ssim": 1.0}
"""What a metric that compares with the reference gives for identical pictures, where that is a number to take a share of."""
WRITTEN = re.compile(r"([A-Za-z_]\w*)=([+-]?)(\d+\.?\d*|\.\d+)(%?)")


@dataclass(frozen=True)
class Floor:
    """What a metric must at least be, or at most where lower is better: `share` x |reference| + `plus` away from the reference.

    Without `against` the bound is `plus` alone.
    """

    metric: str
    against: bool
    share: float
    plus: float
    text: str

    @classmethod
    def parse(cls, text: str) -> "Floor":
        """`clip=-0.5%` and `clip=99.5%` of the reference, `clip=-0.4` from the reference, `psnr=40` itself.

        Raises ConfigError for anything else.
        """
        found = WRITTEN.fullmatch(text.replace(" ", ""))
        if not found:
            raise ConfigError(
                f"--floor: cannot be read (got {text!r}); write METRIC=-0.5% of the reference, METRIC=-0.4 from the "
                "reference, or METRIC=40 for the value itself"
            )
        metric, sign, digits, percent = found.groups()
        value = float(sign + digits)
        if percent:
            return cls(metric, True, value / 100 if sign else value / 100 - 1, 0.0, found.string)
        return cls(metric, bool(sign), 0.0, value, found.string)

    def margins(self, row: Row) -> list[float]:
        """By how much each picture of the job is on the right side, in the metric's unit.

        Raises ConfigError for a floor against a reference that has no value of its own.
        """
        metric = row.metrics[self.metric]
        values = [float(v) for v in metric["values"]]
        if not self.against:
            return [turn(row, self.metric) * (v - self.plus) for v in values]
        identical = IDENTICAL.get(self.metric)
        theirs = metric.get("reference_values") or (None if identical is None else [identical] * len(values))
        if theirs is None:
            mean = metric["candidate"]["mean"]
            raise ConfigError(
                f"--floor: {metric['title']} compares with the reference, which has no value of its own (got {self.text}); "
                f"give the value itself, as {self.metric}={mean:.3g}"
            )
        pairs = zip(values, theirs, strict=True)
        return [turn(row, self.metric) * (v - (r + self.share * abs(r) + self.plus)) for v, r in pairs]


@dataclass(frozen=True)
class Verdict:
    """Whether one job keeps one floor."""

    floor: Floor
    margin: dict[str, Any]
    """Mean over the pictures with its interval, in the metric's unit; positive is on the right side."""

    @property
    def says(self) -> Literal["kept", "broken", "not shown"]:
        """`not shown` where the interval reaches to both sides, and for a single picture."""
        if self.margin["low"] is None:
            return "not shown"
        return "kept" if self.margin["low"] >= 0 else "broken" if self.margin["high"] < 0 else "not shown"


def judge(row: Row, floors: list[Floor]) -> list[Verdict]:
    """A verdict a floor; none at all for a job that was not measured in each of them."""
    import numpy as np

    from diffopt.statistics import interval

    if any(f.metric not in row.metrics for f in floors):
        return []
    return [Verdict(f, interval(np.array(f.margins(row)))) for f in floors]


def check(floors: list[Floor], rows: list[Row]) -> None:
    """Raises ConfigError for a floor under a metric that no job measured, or with no reference to measure it from.

    A sweep in which nothing was measured is left alone: its page says why.
    """
    measured = {name: r for r in reversed(rows) for name in r.metrics}
    for floor in floors if measured else []:
        if floor.metric not in measured:
            there = ", ".join(dict.fromkeys(name for r in rows for name in r.metrics))
            raise ConfigError(f"--floor: no job measured it (got {floor.text}); there are {there}")
        floor.margins(measured[floor.metric])


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


def pick(rows: list[Row], verdicts: dict[str, list[Verdict]], cost: Cost | None) -> Pick | None:
    """The cheapest job shown to keep every floor, else the cheapest whose means keep them; the better one of equal costs."""
    name = first_metric(rows)

    def order(row: Row) -> tuple[float, float]:
        return (cost.rank(row.job) if cost else 0.0, -worth(row, name))

    there = [r for r in rows if verdicts.get(r.job) and (cost is None or r.job in cost.values)]
    keeping = sorted((r for r in there if all(v.margin["mean"] >= 0 for v in verdicts[r.job])), key=order)
    shown = [r for r in keeping if all(v.says == "kept" for v in verdicts[r.job])]
    if not keeping:
        return None
    chosen = (shown or keeping)[0]
    first = keeping[0]
    return Pick(cost, chosen, bool(shown), first if cost and order(first)[0] < order(chosen)[0] else None)


def nearest(rows: list[Row], verdicts: dict[str, list[Verdict]]) -> tuple[Row, Verdict] | None:
    """Where no job keeps the floors: the one whose worst margin is least bad, as a share of the metric, and that margin."""
    worst = [(r, min(verdicts[r.job], key=lambda v: _share(r, v))) for r in rows if verdicts.get(r.job)]
    return max(worst, key=lambda w: _share(*w)) if worst else None


def _share(row: Row, verdict: Verdict) -> float:
    return float(verdict.margin["mean"]) / (abs(row.metrics[verdict.floor.metric]["candidate"]["mean"]) or 1.0)


def margin_text(row: Row, verdict: Verdict) -> str:
    """`0.12 [0.02, 0.22]` with the metric's unit."""
    return figure(verdict.margin, row.metrics[verdict.floor.metric]["unit"])
