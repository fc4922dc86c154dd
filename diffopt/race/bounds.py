"""Bounds on a mean that hold at every look of a race, from values prompt by prompt. Plain numpy and scipy.

A race looks again and again, and each look may err. Look k = 1, 2, ... is given the share 6 / (pi^2 k^2) of the chance, and
these add up to all of it over however many looks: so a race can go on with more prompts, and the promise is the same. The
sequence is that of successive elimination (Even-Dar, Mannor and Mansour 2006, JMLR 7), an alpha-spending function in the sense
of Lan and DeMets (1983, Biometrika 70); races over candidates that are dropped so are Maron and Moore's (1994, NIPS 6).

A look's bound is Student's, widened for skewness (Johnson 1978, JASA 73; Hall 1992, JRSS B 54): scores such as PSNR are skewed,
and of 8 values Student's bound then errs several times as often as it says. The skewness is taken a standard error to the bad
side, and never narrows the bound. What no value has shown yet, such as one broken picture in a hundred, no bound from
values can know.
"""

from functools import cache
from math import pi, sqrt

import numpy as np

PESSIMISM = 1.0
"""Standard errors by which the skewness is taken for larger than it is found."""


def spent(chance: float, look: int) -> float:
    """Of the chance of an error what look `look` has, from 1."""
    return chance * 6 / (pi * look) ** 2


def least(values: np.ndarray, alpha: float) -> float:
    """What the mean of `values` [n] is at least, but for a chance of `alpha`; minus infinity of fewer than 3."""
    return -most(-values, alpha)


def most(values: np.ndarray, alpha: float) -> float:
    """What it is at most."""
    n = len(values)
    if n < 3:
        return float("inf")
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    if deviation <= 1e-12 * max(1.0, abs(mean)):
        return mean
    quantile = _student(1 - alpha, n - 1)
    central = values - mean
    skewness = float((central**3).mean() / (central**2).mean() ** 1.5) * sqrt(n * (n - 1)) / (n - 2)
    doubt = sqrt(6 * n * (n - 1) / ((n - 2) * (n + 1) * (n + 3)))  # the standard error of that (Cramer 1946)
    skewed = max(0.0, skewness + PESSIMISM * doubt) * (2 * quantile**2 + 1) / (6 * sqrt(n))
    return mean + deviation / sqrt(n) * (quantile + skewed)


@cache
def _student(level: float, freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(level, freedom))
