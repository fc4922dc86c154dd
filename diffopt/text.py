"""Numbers as people read them: as many digits as the interval bears."""

import math
from collections.abc import Sequence
from typing import Any


def digits(stat: dict[str, Any]) -> int:
    """Decimals that leave two figures of the interval's half width, or four of the mean where there is no interval."""
    wide = stat["low"] is not None and stat["high"] > stat["low"]
    scale, figures = ((stat["high"] - stat["low"]) / 2, 2) if wide else (abs(stat["mean"]), 4)
    return min(max(figures - 1 - math.floor(math.log10(scale)), 0), 6) if 0 < scale < math.inf else 2


def number(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}"


def with_interval(stat: dict[str, Any], unit: str = "") -> str:
    """Mean, unit and 95% interval, e.g. `33.7 dB [31.8, 35.5]`."""
    mean, low, high = (None if stat[k] is None else number(stat[k], digits(stat)) for k in ("mean", "low", "high"))
    return f"{mean}{' ' if unit else ''}{unit}" + ("" if low is None else f" [{low}, {high}]")


def signed(stat: dict[str, Any], unit: str = "") -> str:
    """A difference with the signs of all three, e.g. `-0.02 [-0.11, +0.06]`."""
    mean, low, high = (None if stat[k] is None else f"{stat[k]:+.{digits(stat)}f}" for k in ("mean", "low", "high"))
    return f"{mean}{' ' if unit else ''}{unit}" + ("" if low is None else f" [{low}, {high}]")


def pace(speedup: dict[str, Any]) -> str:
    """What the interval of a speedup says: at 1 candidate and baseline are equally fast."""
    low, high = (speedup["mean"] if speedup[k] is None else speedup[k] for k in ("low", "high"))
    return "faster than its baseline" if low > 1 else "slower than its baseline" if high < 1 else "no difference shown"


def machine(about: dict[str, Any]) -> str:
    """`2 x NVIDIA L4`, or `Xeon, 2 cores` without a GPU."""
    gpus: Sequence[str] = about["gpus"]
    named = [f"{gpus.count(g)} x {g}" if gpus.count(g) > 1 else g for g in dict.fromkeys(gpus)]
    return " + ".join(named) or f"{about['cpu']}, {about['cores']} cores"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
