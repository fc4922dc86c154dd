"""Means with their uncertainty."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from diffopt.files.interval import Interval
from diffopt.metrics.intervals import around, interval, of_calls
from diffopt.text import number


def normal(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(30.0, 4.0, n)


@pytest.mark.parametrize("n", [200, 1000])
def test_of_many_values_the_interval_is_the_normal_one(n: int) -> None:
    values = normal(n)
    low, high = stats.norm.interval(0.95, values.mean(), values.std() / np.sqrt(n))
    found = interval(values)
    width = high - low
    assert found.low == pytest.approx(low, abs=0.05 * width)
    assert found.high == pytest.approx(high, abs=0.05 * width)


def test_of_zeros_and_ones_the_interval_has_the_quantiles_of_the_binomial() -> None:
    # A resample's mean is binomial: exact, without a bootstrap.
    values = np.array([1.0] * 12 + [0.0] * 8)
    low, high = stats.binom.ppf([0.025, 0.975], 20, 0.6) / 20
    found = interval(values)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.051)
    assert found.mean == 0.6


def test_the_mean_and_the_number_are_the_values() -> None:
    values = normal(17)
    found = interval(values)
    assert found.mean == values.mean()
    assert found.n == 17
    assert found.low < found.mean < found.high


def test_the_interval_covers_the_truth_about_95_times_of_100() -> None:
    found = [interval(normal(40, seed)) for seed in range(100)]
    covered = sum(f.low <= 30.0 <= f.high for f in found)
    assert 87 <= covered <= 99


def test_a_skewed_sample_has_a_skewed_interval() -> None:
    found = interval(np.random.default_rng(0).lognormal(0, 1.5, 60))
    assert found.high - found.mean > 1.1 * (found.mean - found.low)


def test_one_value_has_no_interval() -> None:
    assert interval(np.array([3.5])) == Interval(3.5, None, None, 1, (3.5,))


@pytest.mark.parametrize("n", [2, 9])
def test_fewer_than_ten_values_are_there_themselves_and_have_no_interval(n: int) -> None:
    found = interval(normal(n))
    assert (found.low, found.high, found.ends, found.values) == (None, None, None, tuple(normal(n)))
    assert interval(normal(10)).values is None
    assert interval(normal(10)).ends is not None


def test_an_interval_of_a_few_that_an_older_version_wrote_is_none() -> None:
    assert Interval(-17.0, -18.5, -15.5, 2).ends is None
    assert Interval(-17.0, -18.5, -15.5, 9).mapped(lambda v: -v) == Interval(17.0, None, None, 9)


def test_what_is_few_is_less_of_timed_calls() -> None:
    found = of_calls(np.array([1.1, 1.2, 1.4]))
    assert found.ends is not None
    assert found.ends[0] < found.mean < found.ends[1]
    assert of_calls(np.array([1.1, 1.2])).ends is None


def test_a_few_values_are_mapped_with_their_mean() -> None:
    assert interval(np.array([1.0, 3.0])).mapped(lambda v: -2 * v) == Interval(-4.0, None, None, 2, (-2.0, -6.0))


def test_a_distance_of_a_few_pictures_has_no_interval() -> None:
    assert around(10.0, [9.0, 11.0, 10.0], 9) == Interval(10.0, None, None, 9)


@pytest.mark.parametrize("n", [10, 64])
def test_constant_values_have_an_interval_of_no_width(n: int) -> None:
    assert interval(np.full(n, 130.0)) == Interval(130.0, 130.0, 130.0, n)


def test_the_same_values_give_the_same_interval() -> None:
    assert interval(normal(50)) == interval(normal(50))


def test_what_is_returned_is_plain_numbers() -> None:
    assert {type(v) for v in vars(interval(normal(15).astype(np.float32))).values()} == {float, int, type(None)}
    assert {type(v) for v in interval(normal(5).astype(np.float32)).values or ()} == {float}


def test_ten_thousand_resamples_are_averaged_a_thousand_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mean, shapes = np.mean, []

    def seen(values: np.ndarray, *given: Any, **named: Any) -> Any:
        shapes.append(np.shape(values))
        return mean(values, *given, **named)

    monkeypatch.setattr(np, "mean", seen)
    interval(normal(50))
    assert [s for s in shapes if len(s) == 2 and s[0] > 1] == [(1000, 50)] * 10
    assert len(shapes) < 20


def test_a_sets_interval_is_around_its_own_value_whatever_the_bias_of_the_resampled() -> None:
    resampled = list(5 + np.random.default_rng(0).normal(0, 2, 4000))
    found = around(10.0, resampled, 64)
    assert (found.mean, found.n) == (10.0, 64)
    assert (found.low, found.high) == pytest.approx((10 - 3.92, 10 + 3.92), abs=0.2)


def test_a_sets_interval_does_not_go_below_no_distance() -> None:
    assert around(0.1, [0.0, 5.0, 9.0], 30).low == 0.0
    assert around(0.1, [], 1).low is None


def test_what_rounds_to_zero_has_no_minus() -> None:
    assert (number(-0.04, 1), number(-0.06, 1), number(0.0, 2)) == ("0.0", "-0.1", "0.00")
