"""Means with their uncertainty."""

from typing import Any

import numpy as np

LEVEL, RESAMPLES = 0.95, 10_000


def interval(values: np.ndarray) -> dict[str, Any]:
    """Mean of `values` [n] and its 95% percentile-bootstrap interval (10,000 resamples, fixed seed).

    Returns {mean, low, high, n}; low and high are None for fewer than two values, which show no spread.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None, "n": len(values)}
    from scipy.stats import bootstrap

    if np.ptp(values) == 0:
        return {"mean": mean, "low": mean, "high": mean, "n": len(values)}
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
    return {"mean": mean, "low": float(found.low), "high": float(found.high), "n": len(values)}
