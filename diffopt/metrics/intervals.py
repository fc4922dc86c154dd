"""Means with their uncertainty."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from diffopt.files.interval import CallInterval, Interval

T = TypeVar("T", bound=Interval)
LEVEL, RESAMPLES = 0.95, 10_000
NORMAL = 1.96
"""Deviations either side of the mean that hold 95% of a normal distribution."""


def interval(values: np.ndarray) -> Interval:
    """Mean of `values` [n], of a picture each, and its 95% percentile-bootstrap interval (10,000 resamples, fixed seed).

    Of few the values themselves instead.
    """
    return _bootstrapped(values, Interval)


def of_calls(ratios: np.ndarray) -> CallInterval:
    """The same of `ratios` [n] of the times of calls in turn."""
    return _bootstrapped(ratios, CallInterval)


def _bootstrapped(values: np.ndarray, kind: type[T]) -> T:
    mean = float(np.mean(values))
    if len(values) < kind.FEW:
        return kind(mean, None, None, len(values), tuple(map(float, values)))
    from scipy.stats import bootstrap

    if np.ptp(values) == 0:
        return kind(mean, mean, mean, len(values))
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
    return kind(mean, float(found.low), float(found.high), len(values))


def around(estimate: float, resampled: Sequence[float], n: int) -> Interval:
    """`estimate` of `n` pictures and its 95% interval: 1.96 deviations of its values over bootstrapped sets either side.

    For what is computed of a whole set, whose bootstrapped values are biased: their quantiles may miss the estimate. The
    same as `interval` in form; a distance does not go below 0. Of few pictures there is the estimate alone.
    """
    if n < Interval.FEW or len(resampled) < 2:
        return Interval(estimate, None, None, n)
    reach = NORMAL * float(np.std(resampled, ddof=1))
    return Interval(estimate, max(estimate - reach, 0.0), estimate + reach, n)
