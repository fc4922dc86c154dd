"""Which of several backbones the denoising steps reach: known when a run is planned, and what the pipeline then does."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import SEED, Bench, bench, saved

from diffopt.cli.main import main
from diffopt.errors import PlanError
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.validate import choose
from diffopt.jobs import preflight, schedule
from diffopt.pipeline.calibration import Calibration
from diffopt.pipeline.reach import reached
from diffopt.pipeline.scheduler import scheduler

TWO = ("transformer", "transformer_2")
PROMPTS = "calib.prompts=asset:emoji/prompts_calib.txt"
WAN = ("+recipe=wan_fp8", PROMPTS)


def wan() -> Bench:
    return bench(family="wan")


def test_a_pipeline_calls_its_backbones_in_as_many_steps_as_are_told() -> None:
    b = wan()
    directory = Path(b.source)
    run = Calibration(b.context(), b.pipeline())
    called: dict[str, int] = {}
    for name in TWO:
        getattr(run.pipe, name).register_forward_hook(lambda *_, n=name: called.update({n: called.get(n, 0) + 1}))
    for steps in (1, 2, 5):
        called.clear()
        run(b.texts(0, 2), b.view(0, 2, steps), b.call, SEED, lambda: None)
        each = sum(called.values()) // steps  # two with guidance
        told = reached(directory, scheduler(directory, None), TWO, steps, "calib.n_steps")
        assert {n: many * each for n, many in told.items() if many} == called
        assert sum(told.values()) == steps


def test_without_a_boundary_the_first_backbone_has_all_steps(tmp_path: Path) -> None:
    source = saved("wan")
    (tmp_path / "model_index.json").write_text(
        json.dumps(json.loads((source / "model_index.json").read_text()) | {"boundary_ratio": None})
    )
    assert reached(tmp_path, scheduler(source, None), TWO, 4, "calib.n_steps") == {"transformer": 4, "transformer_2": 0}


def test_one_backbone_has_all_steps() -> None:
    source = saved("flux")
    assert reached(source, scheduler(source, None), TWO[:1], 4, "calib.n_steps") == {"transformer": 4}


def test_a_plan_says_which_backbones_are_reached(config: Any) -> None:
    notes = schedule.planned(choose(config(*WAN, "calib.n_steps=20", "eval.steps=1")))
    assert notes == [
        "calib.n_steps=20 calls transformer in 7 and transformer_2 in 13 denoising steps",
        "eval.steps=1 calls transformer in 1 and transformer_2 in 0 denoising steps",
    ]
    assert schedule.planned(choose(config("+recipe=emoji_int8_sq"))) == []


def test_a_backbone_that_calibration_does_not_reach_is_refused_before_anything_runs(
    config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PlanError) as caught:
        schedule.planned(choose(config(*WAN, "calib.n_steps=1")))
    line = str(caught.value)
    assert line == (
        "calib.n_steps: reaches transformer alone, so transformer_2 would not be calibrated (got 1); "
        "set calib.n_steps=2, or add transformer_2 to format.exclude"
    )
    with pytest.raises(SystemExit) as ended:
        main(["plan", *WAN, "calib.n_steps=1"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("advised", [["calib.n_steps=2"], ["calib.n_steps=1", "format.exclude=[transformer_2]"]])
def test_what_is_advised_is_planned(config: Any, advised: list[str]) -> None:
    assert schedule.planned(choose(config(*WAN, *advised)))


def test_a_model_that_planning_did_not_have_here_is_refused_once_it_is_loaded(config: Any, tmp_path: Path) -> None:
    b = wan()
    few = choose(config(*WAN, "calib.n_steps=1", "eval.steps=1", "model.height=16", "model.width=16"))
    with pytest.raises(PlanError, match=r"^calib.n_steps: reaches transformer alone, so transformer_2 would not be"):
        preflight.check(b.context(), few, b.pipeline())
    assert PipelineFile.read(b.pipeline().path).backbones == TWO
