"""Swept keys whose values are numbers: those that a plot can have as an axis."""

import math
from collections.abc import Sequence

from diffopt.sweep.job_table import Row


def number(text: str | None) -> float | None:
    """None for what is no finite number."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def numbers(rows: Sequence[Row], key: str) -> list[float] | None:
    """The distinct values of a key in ascending order; None where a job that ran has another kind of value, or none.

    A failed job may have been given anything: it has a say only where all failed.
    """
    heard = [r for r in rows if r.run] or list(rows)
    if any(number(r.value(key)) is None for r in heard):
        return None
    return sorted({x for r in rows if (x := number(r.value(key))) is not None})
