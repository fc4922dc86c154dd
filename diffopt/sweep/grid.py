"""The grid of a sweep as panels to plot: two swept numbers as axes, and a panel for each of the other choices."""

from dataclasses import dataclass
from typing import Literal

from diffopt.sweep.job_table import Row, settings, swept
from diffopt.sweep.numeric import number, numbers

SERIES = 6
"""Lines that one plot bears."""
FILLED = 0.5
"""A grid with a smaller share of its cells filled, as a search leaves it, is shown as points."""


@dataclass(frozen=True)
class Axis:
    key: str
    values: tuple[float, ...]
    """Ascending; empty where the key changes nothing in this panel."""

    @property
    def labels(self) -> list[str]:
        return [f"{v:g}" for v in self.values] or [f"any\n{self.key}"]


@dataclass(frozen=True)
class Panel:
    """The jobs that one plot shows, by their place in it."""

    kind: Literal["map", "points", "line", "dots"]
    title: str
    """What its jobs have in common: `format=fp8`; empty where there is one panel."""
    x: Axis | None
    y: Axis | None
    rows: tuple[Row, ...]
    series: tuple[str, ...]
    """Keys that tell the lines of a line plot, or the rows of dots, apart."""

    def place(self, row: Row) -> tuple[int, int] | None:
        """Row and column of a job in a map, from the origin; None for one that was given no number."""
        found = []
        for axis in (self.y, self.x):
            value = number(row.value(axis.key)) if axis else 0.0
            if axis and axis.values and value not in axis.values:
                return None
            found.append(axis.values.index(value) if axis and axis.values and value is not None else 0)
        return found[0], found[1]


def panels(rows: list[Row]) -> list[Panel]:
    """How the sweep is best shown. Jobs without a number on an axis, as failed ones can be, are left to the table."""
    keys = swept(rows)
    found = {k: v for k in keys if (v := numbers(rows, k)) and len(v) > 1}
    axes = sorted(found, key=lambda k: -len(found[k]))[:2]
    axes = [k for k in keys if k in axes]  # in the order in which they were given
    rest = [k for k in keys if k not in axes]
    if not keys or not rows:
        return []
    if not axes:
        return [Panel("dots", "", None, None, tuple(rows), tuple(rest))]
    if len(axes) == 1:
        return _lines(rows, Axis(axes[0], tuple(found[axes[0]])), rest)
    made = []
    for title, group in _split(rows, rest).items():
        y, x = (Axis(k, tuple(found[k])) for k in axes)
        placed = {(r.value(x.key), r.value(y.key)) for r in group}
        full = len(placed) >= FILLED * len({p[0] for p in placed}) * len({p[1] for p in placed})
        if full:
            y, x = _kept(group, y, x), _kept(group, x, y)
        made.append(Panel("map" if full else "points", title, x, y, tuple(group), ()))
    return made


def _lines(rows: list[Row], x: Axis, rest: list[str]) -> list[Panel]:
    if len(_split(rows, rest)) <= SERIES:
        return [Panel("line", "", x, None, tuple(rows), tuple(rest))]
    return [
        Panel("line", title, x, None, tuple(part), tuple(rest[1:]))
        for title, group in _split(rows, rest[:1]).items()
        for part in [group]
    ]


def _split(rows: list[Row], keys: list[str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(settings(row, keys), []).append(row)
    return found


def _kept(rows: list[Row], axis: Axis, other: Axis) -> Axis:
    """The axis, or one place for all its values where the jobs along it fell together."""
    lines: dict[str | None, set[str]] = {}
    for row in rows:
        if row.run:
            lines.setdefault(row.value(other.key), set()).add(row.duplicate_of or row.job)
    many = len({r.value(axis.key) for r in rows}) > 1
    return Axis(axis.key, ()) if many and lines and all(len(jobs) == 1 for jobs in lines.values()) else axis
