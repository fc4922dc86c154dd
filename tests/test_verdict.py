"""What a sample shows, and what is not to be called."""

import re

import numpy as np
import pytest

from diffopt.files.interval import Interval
from diffopt.metrics.intervals import interval
from diffopt.quality import verdict


def stat(mean: float, low: float | None, high: float | None, n: int = 64) -> Interval:
    return Interval(mean, low, high, n)


def test_an_interval_around_nothing_that_leaves_out_a_small_loss_is_no_loss() -> None:
    assert verdict.of_difference(stat(-0.02, -0.11, 0.06), 1.0, "higher") == "no loss at n=64: -0.020 [-0.110, +0.060]"


def test_an_interval_around_nothing_that_could_hide_a_loss_is_not_called() -> None:
    found = verdict.of_difference(stat(-0.2, -1.1, 0.7), 1.0, "higher")
    assert found.startswith("no difference shown at n=64: -0.20 [-1.10, +0.70]; a loss of up to 1.10 could hide in it")
    # The half width 0.9 must come to a fifth of the deviation: 64 x (0.9 / 0.2)^2 = 1296.
    assert found.endswith("about 1300 prompts would tell")


@pytest.mark.parametrize(("low", "high", "said"), [(-3, -1, "loss"), (-0.15, -0.05, "small loss"), (0.1, 0.3, "gain")])
def test_an_interval_beside_nothing_is_called(low: float, high: float, said: str) -> None:
    assert verdict.of_difference(stat((low + high) / 2, low, high), 1.0, "higher").startswith(f"{said} at n=64: ")


def test_where_lower_is_better_a_rise_is_a_loss() -> None:
    assert verdict.of_difference(stat(2, 1, 3), 1.0, "lower").startswith("loss at")
    assert verdict.of_difference(stat(-2, -3, -1), 1.0, "lower").startswith("gain at")
    assert "a loss of up to 3.0" in verdict.of_difference(stat(0, -0.5, 3), 1.0, "lower")


@pytest.mark.parametrize("n", [1, 9])
def test_few_prompts_call_nothing_however_far_apart(n: int) -> None:
    low, high = (None, None) if n == 1 else (-6.0, -4.0)
    assert verdict.of_difference(stat(-5, low, high, n), 1.0, "higher").startswith(f"too few to call at n={n}: -5")


def test_a_verdict_on_a_few_has_their_values_and_no_interval() -> None:
    few = interval(np.array([0.3, -0.1]))
    assert verdict.of_difference(few, 1.0, "higher", "dB") == "too few to call at n=2: +0.10 dB of +0.30, -0.10"
    assert verdict.of_alternative("training", few, "higher") == "too few to call at n=2: +0.10 of +0.30, -0.10"
    assert verdict.of_distance(few, "dB", 0) == "distance from the reference at n=2: 0.10 dB of 0.30, -0.10"


def test_equal_values_are_no_loss() -> None:
    assert verdict.of_difference(stat(0, 0, 0), 0.0, "higher").startswith("no loss at n=64")


def test_equal_models_are_told_apart_in_about_one_of_twenty_samples() -> None:
    called = 0
    for seed in range(80):
        ours, theirs = np.random.default_rng(seed).normal(0, 1, (2, 60))
        said = verdict.of_difference(interval(ours - theirs), float(theirs.std()), "higher")
        called += bool(re.match("(small )?loss|gain", said))
    assert 1 <= called <= 12


def test_a_distance_is_given_with_its_identical_pictures() -> None:
    assert verdict.of_distance(stat(40, 39, 41), "dB", 3) == (
        "distance from the reference at n=64: 40.0 dB [39.0, 41.0]; 3 of 64 identical"
    )
    assert verdict.of_distance(stat(130, 130, 130), "dB", 64) == "identical to the reference at n=64"


def test_two_models_are_put_in_order_only_where_the_sample_shows_it() -> None:
    assert verdict.of_order("fp8", "int4", stat(9, 8, 10), "dB") == "fp8 over int4: +9.0 dB [+8.0, +10.0], n=64"
    assert verdict.of_order("a", "b", stat(0.5, -1, 2)).startswith("a and b: no difference shown (+0.5")
    few = interval(np.array([8.0, 10.0]))
    assert verdict.of_order("a", "b", few) == "a and b: too few to call at n=2: +9.0 of +8.0, +10.0"
