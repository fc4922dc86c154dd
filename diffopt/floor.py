"""A floor under quality, and whether a job keeps it: judged picture by picture, with the interval."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from diffopt.cost import Cost
from diffopt.errors import ConfigError
from diffopt.figure import figure
from diffopt.job_table import Row
from diffopt.ranking import FEW, first_metric, turn, worth

WRITTEN = re.compile(r"([A-Za-z][\w.-]*)=(?:([+-]\d*\.?\d+)%|([+-]?\d*\.?\d+))")


class Measured(Protocol):
    """A job of a sweep, or a run."""

    @property
    def metrics(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Floor:
    """What a metric must at least be, or at most where lower is better."""

    metric: str
    limit: float
    """A share of the reference, as -0.005, where it is a change from it; else the metric's own value."""
    change: bool
    text: str

    @classmethod
    def parse(cls, text: str) -> "Floor":
        """`clip=-0.5%` from the reference, or `psnr=40` itself: the forms of a recipe's gates.

        Raises ConfigError for anything else.
        """
        found = WRITTEN.fullmatch(text.replace(" ", ""))
        if not found:
            raise ConfigError(
                f"floor: cannot be read (got {text!r}); write METRIC=-0.5% for the change from the reference that is "
                "borne, or METRIC=40 for the value itself"
            )
        metric, change, value = found.groups()
        limit = float(change) / 100 if change else float(value)
        return cls(metric, limit, bool(change), found.string)

    def margin(self, row: "Measured") -> dict[str, Any]:
        """By how much the job or run is on the right side, in the metric's unit: mean over the pictures, with its interval.

        Raises ConfigError for a change in a metric whose reference has no values.
        """
        metric = row.metrics[self.metric]
        sign = turn(metric)
        if self.change and "reference_values" not in metric:
            mean = metric["candidate"]["mean"]
            raise ConfigError(
                f"floor: {metric['title']} is a distance from the reference already (got {self.text}); "
                f"give its own limit, as {self.metric}={mean:.3g}"
            )
        if "values" not in metric:  # of a metric that judges sets of pictures there is the interval alone
            stat = metric["candidate"]
            ends = [None if stat[k] is None else sign * (stat[k] - self.limit) for k in ("low", "high")]
            low, high = ends if sign > 0 else ends[::-1]
            return {"mean": sign * (stat["mean"] - self.limit), "low": low, "high": high, "n": stat["n"]}
        import numpy as np

        from diffopt.statistics import interval

        values = np.array(metric["values"], dtype=float)
        if not self.change:
            return interval(sign * (values - self.limit))
        theirs = np.array(metric["reference_values"], dtype=float)
        return interval(sign * (values - theirs - self.limit * np.abs(theirs)))


def floors(given: Mapping[str, float | str] | Sequence[str] | None) -> list[Floor]:
    """Of `[clip=-0.5%, psnr=40]` or `{clip: -0.5%, psnr: 40}`, as a recipe has them. Raises ConfigError for what is none."""
    if isinstance(given, Mapping):
        return [Floor.parse(f"{name}={limit}") for name, limit in given.items()]
    return [Floor.parse(str(text)) for text in given or ()]


def shortfall(measured: Measured, floors: Sequence[Floor]) -> float:
    """By how much the means miss the floors, as shares of the metrics' values, added up; 0 where all are kept.

    Raises ConfigError for a floor under a metric that was not measured.
    """
    found = 0.0
    for floor in floors:
        if floor.metric not in measured.metrics:
            there = ", ".join(measured.metrics) or "no metrics"
            raise ConfigError(f"floor: is not measured (got {floor.text}); there are {there}")
        found += max(0.0, -_share(measured, floor, floor.margin(measured)))
    return found


@dataclass(frozen=True)
class Verdict:
    """Whether one job keeps one floor."""

    floor: Floor
    margin: dict[str, Any]
    """Mean over the pictures with its interval, in the metric's unit; positive is on the right side."""

    @property
    def says(self) -> Literal["kept", "broken", "not shown"]:
        """`not shown` where the interval reaches to both sides, and for fewer than FEW pictures."""
        if self.margin["low"] is None or self.margin["n"] < FEW:
            return "not shown"
        return "kept" if self.margin["low"] >= 0 else "broken" if self.margin["high"] < 0 else "not shown"


def judge(row: Row, floors: list[Floor]) -> list[Verdict]:
    """A verdict a floor; none at all for a job that was not measured in each of them."""
    if any(f.metric not in row.metrics for f in floors):
        return []
    return [Verdict(f, f.margin(row)) for f in floors]


def check(floors: list[Floor], rows: list[Row]) -> None:
    """Raises ConfigError for a floor under a metric that no job measured, or with no reference to measure it from.

    A sweep in which nothing was measured is left alone: its page says why.
    """
    measured = {name: r for r in reversed(rows) for name in r.metrics}
    for floor in floors if measured else []:
        if floor.metric not in measured:
            there = ", ".join(dict.fromkeys(name for r in rows for name in r.metrics))
            raise ConfigError(f"floor: no job measured it (got {floor.text}); there are {there}")
        floor.margin(measured[floor.metric])


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
    worst = [(r, min(verdicts[r.job], key=lambda v: _share(r, v.floor, v.margin))) for r in rows if verdicts.get(r.job)]
    return max(worst, key=lambda w: _share(w[0], w[1].floor, w[1].margin)) if worst else None


def _share(measured: Measured, floor: Floor, margin: dict[str, Any]) -> float:
    return float(margin["mean"]) / (abs(measured.metrics[floor.metric]["candidate"]["mean"]) or 1.0)


def margin_text(row: Row, verdict: Verdict) -> str:
    """`0.12 [0.02, 0.22]` with the metric's unit."""
    return figure(verdict.margin, row.metrics[verdict.floor.metric]["unit"])
