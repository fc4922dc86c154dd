"""Means with their uncertainty."""

from collections.abc import Sequence

import numpy as np

from diffopt.files.interval import Interval

LEVEL, RESAMPLES = 0.95, 10_000
NORMAL = 1.96
"""Deviations either side of the mean that hold 95% of a normal distribution."""


def interval(values: np.ndarray) -> Interval:
    """Mean of `values` [n] and its 95% percentile-bootstrap interval (10,000 resamples, fixed seed).

    Fewer than two values show no spread.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None, None, len(values))
    from scipy.stats import bootstrap

    if np.ptp(values) == 0:
        return Interval(mean, mean, mean, len(values))
    found = bootstrap(
        (values,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        method="percentile",
        batch=1000,
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), len(values))


def around(estimate: float, resampled: Sequence[float], n: int) -> Interval:
    """`estimate` of `n` pictures and its 95% interval: 1.96 deviations of its values over bootstrapped sets either side.

    For what is computed of a whole set, whose bootstrapped values are biased: their quantiles may miss the estimate. The
    same as `interval` in form; a distance does not go below 0.
    """
    if len(resampled) < 2:
        return Interval(estimate, None, None, n)
    reach = NORMAL * float(np.std(resampled, ddof=1))
    return Interval(estimate, max(estimate - reach, 0.0), estimate + reach, n)
