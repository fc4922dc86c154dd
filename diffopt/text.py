"""Numbers as people read them: as many digits as the interval bears."""

import math
from collections.abc import Callable

from diffopt.files.interval import Interval
from diffopt.files.machine import Machine

SLOWER = "slower than its baseline"


def digits(stat: Interval) -> int:
    """Decimals that leave two figures of half the width of the interval, or of the few values; of one value four figures."""
    low, high = stat.ends or (min(stat.values or (0.0,)), max(stat.values or (0.0,)))
    scale, figures = ((high - low) / 2, 2) if high > low else (abs(stat.mean), 4)
    return min(max(figures - 1 - math.floor(math.log10(scale)), 0), 6) if 0 < scale < math.inf else 2


def number(value: float, decimals: int) -> str:
    return f"{value:z.{decimals}f}"  # no minus before a zero


def with_interval(stat: Interval, unit: str = "") -> str:
    """Mean, unit and 95% interval, e.g. `33.7 dB [31.8, 35.5]`; of few values `33.7 dB of 31.8, 35.5`."""
    return _written(stat, unit, lambda value: number(value, digits(stat)))


def signed(stat: Interval, unit: str = "") -> str:
    """A difference with the signs of all three, e.g. `-0.02 [-0.11, +0.06]`.

    What rounds to zero keeps its sign: by it a limit is kept or broken.
    """
    return _written(stat, unit, lambda value: f"{value:+.{digits(stat)}f}")


def _written(stat: Interval, unit: str, text: Callable[[float], str]) -> str:
    few = f" of {each}" if (each := _each(stat, text)) else ""
    ends = f" [{', '.join(map(text, stat.ends))}]" if stat.ends else few
    return f"{text(stat.mean)}{' ' if unit else ''}{unit}{ends}"


def few_values(stat: Interval) -> str:
    """`31.8, 35.5`; empty where there is an interval instead, or the mean is the only value."""
    return _each(stat, lambda value: number(value, digits(stat)))


def _each(stat: Interval, text: Callable[[float], str]) -> str:
    return ", ".join(map(text, stat.values)) if stat.values and len(stat.values) > 1 and not stat.ends else ""


def about_means(stat: Interval) -> str:
    """What stands beside the means of so many pictures."""
    return "[95% bootstrap interval]" if stat.ends else f"of the values beside it: fewer than {stat.FEW} have no interval"


def pace(speedup: Interval) -> str:
    """What the interval of a speedup says: at 1 candidate and baseline are equally fast."""
    low, high = speedup.ends or (speedup.mean, speedup.mean)
    return "faster than its baseline" if low > 1 else SLOWER if high < 1 else "no difference shown"


def machine(about: Machine) -> str:
    """`2 x NVIDIA L4`, or `Xeon, 2 cores` without a GPU."""
    gpus = about.gpus
    named = [f"{gpus.count(g)} x {g}" if gpus.count(g) > 1 else g for g in dict.fromkeys(gpus)]
    return " + ".join(named) or f"{about.cpu}, {about.cores} cores"


def printable(text: str) -> str:
    """Without what would steer a terminal, or is no text: such characters as Python writes them."""
    return "".join(c if c in "\n\t" or (c.isprintable() and not _steers(c)) else repr(c)[1:-1] for c in text)


def _steers(character: str) -> bool:
    return "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"  # the direction of what follows


def duration(seconds: float) -> str:
    """For people: `40 s`, `7 min`, `2 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
