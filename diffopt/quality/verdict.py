"""What a sample shows of a difference, and what it cannot show. Imports no library."""

import math

from diffopt.files.interval import Interval
from diffopt.quality.direction import sign
from diffopt.text import digits, signed, with_interval

SMALL = 0.2
"""Of the deviation between prompts: a difference below it is small (Cohen 1988)."""


def of_difference(difference: Interval, deviation: float, better: str, unit: str = "") -> str:
    """The verdict on candidate - reference, prompt by prompt: a gain, a loss, no loss, or that the sample cannot tell.

    A loss or gain is called only where the 95% interval leaves 0 out. `no loss` is called only where the interval also
    leaves out every loss of more than SMALL x `deviation`, that of the reference's values between prompts; otherwise the
    sample could hide one, and the line says how many prompts could show it.
    """
    n, said = difference.n, signed(difference, unit)
    ends = difference.mapped(lambda v: sign(better) * v).ends
    if ends is None:
        return f"too few to call at n={n}: {said}"
    (low, high), margin = ends, SMALL * deviation
    if low > 0:
        return f"gain at n={n}: {said}"
    if high < 0:
        return f"{'loss' if low < -margin else 'small loss'} at n={n}: {said}"
    if -low <= margin:
        return f"no loss at n={n}: {said}"
    hidden = f"{-low:.{digits(difference)}f}{' ' if unit else ''}{unit}"
    # The half width shrinks with the root of n; margin > 0 here unless the reference's values are all equal.
    need = f", about {_rounded(n * ((high - low) / 2 / margin) ** 2)} prompts would tell" if margin else ""
    return f"no difference shown at n={n}: {said}; a loss of up to {hidden} could hide in it{need}"


def _rounded(many: float) -> int:
    """Up to two figures."""
    unit = 10 ** max(math.floor(math.log10(max(many, 1))) - 1, 0)
    return int(math.ceil(many / unit) * unit)


def of_distance(stat: Interval, unit: str, identical: int) -> str:
    """What a distance from the reference shows: it is no loss by itself, so it is given with how many pairs are identical."""
    n = stat.n
    if identical == n:
        return f"identical to the reference at n={n}"
    some = f"; {identical} of {n} identical" if identical else ""
    return f"distance from the reference at n={n}: {with_interval(stat, unit)}{some}"


def of_order(better: str, worse: str, difference: Interval, unit: str = "") -> str:
    """Of two models' distances, paired by prompt: which is nearer to the reference, where the sample shows it.

    `difference` is that of the values, turned so that the mean is for `better`.
    """
    if difference.ends is None:
        return f"{better} and {worse}: too few to call at n={difference.n}: {signed(difference, unit)}"
    said = f"{signed(difference, unit)}, n={difference.n}"
    return f"{better} over {worse}: {said}" if difference.ends[0] > 0 else f"{better} and {worse}: no difference shown ({said})"


def of_alternative(ours: str, difference: Interval, better: str, unit: str = "") -> str:
    """Of the difference candidate - further candidate, prompt by prompt: whether `ours` (the cache, training) won or lost."""
    n, said = difference.n, signed(difference, unit)
    ends = difference.mapped(lambda v: sign(better) * v).ends
    if ends is None:
        return f"too few to call at n={n}: {said}"
    if ends[0] > 0:
        return f"{ours} won at n={n}: {said}"
    return f"{ours} lost at n={n}: {said}" if ends[1] < 0 else f"no difference shown at n={n}: {said}"
