"""A limit is one thing in a gate, a floor and a cache's search: what it takes, and that all three judge the same."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sweeps import findings, job, measured

from diffopt.errors import ConfigError
from diffopt.files.json_file import typed
from diffopt.files.metrics import MetricResult
from diffopt.groups.validate import choose
from diffopt.quality.floor import floors, shortfall
from diffopt.quality.limit import Limit
from diffopt.report.gate_outcomes import outcomes
from diffopt.report.run_directory import Run
from diffopt.tuning.judge import Judge

BOTH_SIGNS = np.array([-2.2, -1.4, -0.6, -0.1, 0.3, 0.8, 1.4, 1.9, 2.4, 1.5])
"""As ImageReward's: a mean of 0.4, a mean size of 1.26."""


def result(metric: dict[str, Any]) -> MetricResult:
    return typed(MetricResult, metric)


@pytest.mark.parametrize(
    ("metric", "given", "kind", "amount"),
    [
        ("psnr", 20, "value", 20),
        ("psnr", "20.50", "value", 20.5),
        ("lpips", 1e-5, "value", 1e-5),
        ("lpips", "1e-05", "value", 1e-5),
        ("imagereward", "-.5", "value", -0.5),  # its own mean: it can be negative
        ("clip", "-0.5%", "change", -0.005),
        ("clip", " +2 % ", "change", 0.02),
        ("lpips", 32.46419056897638, "value", 32.46419056897638),  # to the last bit
        ("latency", "1.0x", "speedup", 1),
        ("unknown", "-1%", "change", -0.01),
    ],
)
def test_a_limit_is_a_mean_a_change_or_a_speedup(metric: str, given: float | str, kind: str, amount: float) -> None:
    found = Limit.parse(metric, given)
    assert (found.metric, found.kind, found.amount) == (metric, kind, amount)
    assert Limit.parse(metric, found.written) == found


NONE = ["much", "", "--1", "1%%", "nan", "inf", "1e999", "1=2", "5 x 2", "%", "1.0x"]


@pytest.mark.parametrize(
    ("metric", "given", "said"),
    [
        *(("clip", x, "is not a limit; write a mean such as 20, or a change such as -0.5%") for x in NONE),
        *(("latency", x, "is not a limit; write the least speedup, such as 1.0x") for x in ("2", "-5%", "much")),
        ("clip", "5%", "is a change without a sign; write -5% or +5%"),
        ("clip", "0%", "is a change without a sign; write -0% or +0%"),
        ("psnr", "-5%", "is a distance from the reference already; give its own limit, without %"),
        ("fid", "-5%", "is a distance from the reference already; give its own limit, without %"),
    ],
)
def test_what_is_no_limit_is_refused_with_what_to_write(metric: str, given: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^is ") as caught:
        Limit.parse(metric, given)
    assert str(caught.value) == said


@pytest.mark.parametrize("given", ["5%", "much", "1.0x"])
def test_what_a_gate_refuses_a_floor_and_a_search_refuse_in_the_same_words(given: str, config: Any) -> None:
    with pytest.raises(ValueError, match=r"^is ") as caught:
        Limit.parse("clip", given)
    what, _, advice = str(caught.value).partition("; ")
    gated, searched = config("+recipe=quickstart"), config("+recipe=emoji_cache_search")
    gated["eval"]["gates"], searched["cache"]["search"]["floor"] = {"clip": given}, {"clip": given}
    for wrong in (lambda: choose(gated), lambda: choose(searched), lambda: floors([f"clip={given}"])):
        with pytest.raises(ConfigError) as refused:
            wrong()
        assert what in str(refused.value)
        assert str(refused.value).endswith(f"); {advice}")


def judged(directory: Path, metric: dict[str, Any], given: str) -> list[bool]:
    """Whether a gate, a sweep's floor, a search's job and a cache's search say that the mean keeps the limit."""
    run = Run(job(directory / "0", {"clip": metric}))
    content = json.loads((run.directory / "run.json").read_text())
    content["config"] += f"eval: {json.dumps({'gates': {'clip': given}})}\n"
    (run.directory / "run.json").write_text(json.dumps(content))
    run = Run(run.directory)
    limit = Limit.parse("clip", given)
    (gate,) = outcomes(run)
    searched = Judge.verdict(SimpleNamespace(floors=[limit]), run.metrics)  # type: ignore[arg-type]
    return [gate.holds, bool(findings(directory, f"clip={given}").picks), shortfall(run, [limit]) == 0, searched.keeps]


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize("given", ["-10%", "+10%", "-0%", "0.35"])
@pytest.mark.parametrize("apart", [-0.2, -0.041, -0.039, 0.0, 0.039, 0.041])
def test_gates_floors_and_searches_agree_on_a_metric_of_both_signs(
    tmp_path: Path, better: str, given: str, apart: float
) -> None:
    metric = measured(BOTH_SIGNS + apart, BOTH_SIGNS, "ImageReward", "", better)
    share = given.endswith("%")  # of 0.4, whatever single pictures have
    wanted = 0.4 + float(given.removesuffix("%")) / 100 * 0.4 if share else float(given)
    mean = 0.4 + apart
    assert judged(tmp_path, metric, given) == [mean >= wanted - 1e-12 if better == "higher" else mean <= wanted + 1e-12] * 4


def test_a_share_of_a_metric_of_both_signs_is_of_the_means_size_and_the_same_for_every_picture() -> None:
    limit, metric = Limit.parse("clip", "-10%"), result(measured(BOTH_SIGNS - 0.1, BOTH_SIGNS, "ImageReward", ""))
    assert limit.bound(metric) == pytest.approx(0.36)
    margin = limit.margin(metric)
    assert margin.mean == pytest.approx(-0.06)  # where a tenth of each picture's own size bore 0.126
    assert margin.ends == pytest.approx((-0.06, -0.06))  # every picture lost the same


@pytest.mark.parametrize("scale", [1, -1])
def test_of_one_sign_the_mean_of_the_margins_is_that_of_each_pictures_own_share(scale: int) -> None:
    rng = np.random.default_rng(0)
    theirs = scale * (80 + 5 * rng.normal(size=40))
    ours = theirs - 0.3 + rng.normal(size=40)
    margin = Limit.parse("clip", "-0.5%").margin(result(measured(ours, theirs)))
    own = ours - theirs + 0.005 * np.abs(theirs)
    assert margin.mean == pytest.approx(own.mean())
    assert margin.ends is not None
    assert margin.ends[1] - margin.ends[0] == pytest.approx(np.diff(result(measured(own)).candidate.ends)[0], rel=0.02)


def test_of_a_reference_with_a_mean_of_zero_every_share_is_zero(tmp_path: Path) -> None:
    theirs = np.array([-1.0, 1.0] * 5)
    assert judged(tmp_path / "a", measured(theirs, theirs), "-50%") == [True] * 4
    assert judged(tmp_path / "b", measured(theirs - 1e-9, theirs), "-50%") == [False] * 4
    (gate,) = outcomes(Run(tmp_path / "b" / "0"))
    assert gate.found.startswith("-0.000000")  # in the metric's unit: there is nothing to be a share of


def test_a_mean_at_the_limit_keeps_it_whatever_the_rounding_of_the_pictures(tmp_path: Path) -> None:
    for i, part in enumerate((7, 11, 13, 17)):
        values = np.array([29.9, 30.1, 30.3, 29.7, 30.2, 29.8, 30.7, 29.3, 30.4, 29.6]) / part
        assert judged(tmp_path / str(i), measured(values), repr(float(values.mean()))) == [True] * 4


def test_a_gate_of_an_older_run_that_is_no_limit_any_more_is_broken_and_says_why(tmp_path: Path) -> None:
    run = Run(job(tmp_path, {"clip": measured(BOTH_SIGNS, BOTH_SIGNS)}))
    content = json.loads((run.directory / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**content, "config": content["config"] + "eval: {gates: {clip: 5%}}\n"}))
    (gate,) = outcomes(Run(tmp_path))
    assert (gate.gate, gate.holds) == ("clip: 5%", False)
    assert gate.found == "nothing, it is a change without a sign; write -5% or +5%"
