"""What a search seeks, and the floor under it."""

from pathlib import Path

import pytest
from test_report import exported, scored

from diffopt.errors import ConfigError, GateError
from diffopt.jobs import objective
from diffopt.quality.floor import floors
from diffopt.report.run_directory import Run


def test_without_a_name_it_is_the_first_metrics_mean_or_none(tmp_path: Path) -> None:
    assert objective.of(Run(scored(tmp_path / "a", psnr=31.5)), None) == 31.5
    assert objective.of(Run(exported(tmp_path / "b")), None) is None


def test_several_are_a_list_in_their_order(tmp_path: Path) -> None:
    run = Run(exported(tmp_path, 1.5))
    assert objective.of(run, ["seconds", "bytes"]) == [pytest.approx(0.2), 1024.0]
    assert objective.directions(["seconds", "psnr", "lpips"]) == ["minimize", "maximize", "minimize"]


def test_what_was_not_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="seconds"):
        objective.of(Run(scored(tmp_path)), "seconds")


@pytest.mark.parametrize(("psnr", "kept"), [(30.0, True), (29.9, False), (10.0, False)])
def test_below_the_floor_a_job_is_worse_than_any_above_it(tmp_path: Path, psnr: float, kept: bool) -> None:
    value = objective.of(Run(scored(tmp_path, psnr)), "psnr", floors(["psnr=30"]))
    assert (value == psnr) if kept else (value < -objective.BROKEN)


def test_further_below_the_floor_is_worse(tmp_path: Path) -> None:
    near, far = (objective.of(Run(scored(tmp_path / str(p), p)), "psnr", floors(["psnr=30"])) for p in (29.0, 20.0))
    assert far < near


def test_a_cost_below_the_floor_is_dearer_than_any(tmp_path: Path) -> None:
    exported(tmp_path)
    run = Run(scored(tmp_path, 20.0))
    assert objective.of(run, "bytes") == 1024.0
    assert objective.of(run, "bytes", floors(["psnr=30"])) > objective.BROKEN


@pytest.mark.parametrize("floor", ["psnr", "psnr>30", "fid=3", "psnr=-1%"])
def test_a_floor_that_cannot_be_judged_is_refused_by_name(tmp_path: Path, floor: str) -> None:
    with pytest.raises(ConfigError, match=floor.partition("=")[0]):
        objective.of(Run(scored(tmp_path)), "psnr", floors([floor]))


@pytest.mark.parametrize(
    ("overrides", "name"), [(["objective=bytes"], "export"), (["objective=seconds", "eval.latency=false"], "latency")]
)
def test_an_objective_that_the_recipe_will_not_measure_is_refused(plan, overrides: list[str], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        plan("+recipe=emoji_int8_sq", *overrides)


def test_a_metric_that_the_recipe_does_not_have_is_refused_by_name(plan) -> None:
    with pytest.raises(ConfigError, match=r"'fid'.*psnr"):
        plan("+recipe=emoji_int8_sq", "objective=[bytes,fid]", "export=onnx")
