"""Gates of a recipe: what they take, when they hold, and that a broken one keeps what was made."""

import json
import os
from pathlib import Path

import pytest
from test_report import exported, page, scored, words

from diffopt.errors import ConfigError, GateError
from diffopt.groups.validate import choose
from diffopt.report import run_page
from diffopt.report.gate_outcomes import enforce, outcomes
from diffopt.report.run_directory import Run


def gated(directory: Path, **limits: object) -> Run:
    """The run of `directory` with these gates in its recipe."""
    path = directory / "run.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "config": content["config"] + f"eval: {json.dumps({'gates': limits})}\n"}))
    return Run(directory)


def held(run: Run) -> list[bool]:
    return [o.holds for o in outcomes(run)]


@pytest.mark.parametrize(("limit", "holds"), [(29.5, True), (30, True), (30.5, False), ("30.5", False)])
def test_a_number_is_the_least_mean(tmp_path: Path, limit: object, holds: bool) -> None:
    assert held(gated(scored(tmp_path, psnr=30.0), psnr=limit)) == [holds]


@pytest.mark.parametrize(("limit", "holds"), [("-3%", True), ("-2.7%", False), ("-0.5%", False), ("+1%", False)])
def test_a_percentage_is_the_change_from_the_references_mean(tmp_path: Path, limit: str, holds: bool) -> None:
    # The candidate is 2.25 below the reference's 82.5: -2.73%.
    assert held(gated(scored(tmp_path), clip=limit)) == [holds]


@pytest.mark.parametrize(("limit", "holds"), [(31, True), (29, False)])
def test_where_lower_is_better_a_number_is_the_most(tmp_path: Path, limit: float, holds: bool) -> None:
    path = scored(tmp_path) / "score" / "metrics.json"
    path.write_text(path.read_text().replace('"better": "higher"', '"better": "lower"'))
    assert held(gated(tmp_path, psnr=limit)) == [holds]


@pytest.mark.parametrize(("limit", "holds"), [("1.0x", True), ("1.5x", True), ("1.6x", False)])
def test_a_latency_is_the_least_speedup(tmp_path: Path, limit: str, holds: bool) -> None:
    assert held(gated(exported(tmp_path, 1.5), latency=limit)) == [holds]


def test_a_gate_on_what_was_not_measured_is_broken(tmp_path: Path) -> None:
    assert held(gated(scored(tmp_path), latency="1.0x", ssim=0.9)) == [False, False]


def test_every_broken_gate_is_said_with_what_was_reached_and_where_all_is_kept(tmp_path: Path) -> None:
    run = gated(scored(tmp_path), psnr=31, clip="-0.5%", latency="1.0x")
    with pytest.raises(GateError) as e:
        enforce(run)
    first, second, third = str(e.value).splitlines()
    assert first == (
        "eval.gates.psnr: is not reached (got 30.0 dB [29.0, 31.0], asked psnr: 31); "
        f"everything made is kept in {os.path.relpath(tmp_path)}"
    )
    assert "(got -2.73 % [-3.33, -2.12], asked clip: -0.5%)" in second
    assert "(got no speedup, " in third
    assert (tmp_path / "sample" / "000.png").is_file()


def test_gates_that_hold_stop_nothing(tmp_path: Path) -> None:
    enforce(gated(scored(tmp_path), psnr=20, clip="-5%"))


def test_the_summary_and_the_page_say_what_became_of_the_gates(tmp_path: Path) -> None:
    gated(scored(tmp_path), psnr=31, clip="-5%")
    lines = [line for line in run_page.summary(tmp_path) if line.startswith("gate")]
    assert lines == [
        "gate        psnr: 31 is broken: 30.0 dB [29.0, 31.0]",
        "gate        clip: -5% holds: -2.73 % [-3.33, -2.12]",
    ]
    text = words(page(tmp_path))
    assert "Gate psnr: 31 is broken : 30.0 dB [29.0, 31.0]" in text
    assert "Gate clip: -5% holds :" in text


@pytest.mark.parametrize(
    ("limits", "where"),
    [
        ({"psnr": "much"}, "eval.gates.psnr: is not a limit (got 'much')"),
        ({"psnr": "-1%"}, "eval.gates.psnr: is a distance from the reference already"),
        ({"psnr": "1.0x"}, "eval.gates.psnr: is not a limit (got '1.0x'); write a mean such as 20, or a change such as -0.5%"),
        ({"latency": 2}, "eval.gates.latency: is not a limit (got 2.0); write the least speedup, such as 1.0x"),
        ({"fid": 3}, "eval.gates.fid: is not measured (got 3"),
        ({"fidd": 3}, "eval.gates.fidd: is no metric (got the limit 3"),
    ],
)
def test_what_is_no_gate_is_refused_before_anything_runs(config, limits: dict, where: str) -> None:
    composed = config("+recipe=quickstart")
    composed["eval"]["gates"] = limits
    with pytest.raises(ConfigError) as e:
        choose(composed)
    assert str(e.value).startswith(where)


def test_a_latency_gate_without_a_timing_is_refused(config) -> None:
    composed = config("+recipe=quickstart", "eval.latency=false")
    composed["eval"]["gates"] = {"latency": "1.0x"}
    with pytest.raises(ConfigError, match=r"^eval.gates.latency: nothing is timed"):
        choose(composed)


def test_a_gate_computes_nothing_again(plan) -> None:
    before, after = plan("+recipe=quickstart"), plan("+recipe=quickstart", "+eval.gates.psnr=20", "+eval.gates.clip=-0.5%")
    assert {s.name: s.fingerprint for s in before.steps} == {s.name: s.fingerprint for s in after.steps}
