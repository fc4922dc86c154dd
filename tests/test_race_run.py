"""The whole race on a tiny model: rounds by Hydra's launcher, a killed one goes on, and its answer runs as a recipe."""

import json
import multiprocessing
import os
import shlex
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from tiny import ONE, saved

from diffopt.cli.main import main
from diffopt.files.layers import read_layers
from diffopt.files.pipeline import PipelineFile
from diffopt.files.race import RaceFile
from diffopt.groups.validate import choose
from diffopt.race.costs import foreseen
from diffopt.report.run_directory import Run
from diffopt.runtimes import candidate, stopwatch
from diffopt.shipping.findings import command
from diffopt.sweep.findings import Findings

fork = multiprocessing.get_context("fork")
RECIPE: dict[str, Any] = {
    "defaults": [
        {"override /model": "flux_dev"},
        {"override /format": "int8_sq"},
        {"override /calib": "default"},
        {"override /eval": "default"},
        {"override /hydra/sweeper": "race"},
    ],
    "model": {"dtype": "float32", "height": 32, "width": 32, "max_sequence_length": 16, "long_prompts": "cut"},
    "calib": {"size": 2, "batch_size": 2, "chunk": 2, "n_steps": 1},
    "eval": {"batch_size": 8, "chunk": 8, "steps": 1, "reference_steps": 2, "metrics": ["psnr"], "latency": False},
    "ship": {
        "want": "steps",
        "floor": {"psnr": 5},
        "rounds": [8, 16],
        "space": [{"format": "int8_sq,fp8", "eval.steps": "1,2"}],
    },
    "hydra": {"mode": "MULTIRUN"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the recipe `tiny_ship`; one thread, since a process that is forked has no others."""
    where, before = tmp_path_factory.mktemp("race"), torch.get_num_threads()
    (where / "recipes").mkdir()
    (where / "prompts.txt").write_text("\n".join(f"thing number {i} of sixteen" for i in range(16)))
    files = {"calib": {"prompts": str(where / "prompts.txt")}, "eval": {"prompts": str(where / "prompts.txt")}}
    recipe = {k: {**v, **files.get(k, {})} if isinstance(v, dict) else v for k, v in RECIPE.items()}
    recipe["model"]["source"] = str(saved("flux", **ONE))
    text = f"# @package _global_\n{yaml.safe_dump(recipe, sort_keys=False)}"
    (where / "recipes/tiny_ship.yaml").write_text(text)
    torch.set_num_threads(1)
    yield where
    torch.set_num_threads(before)


def race(place: Path, sweep: str, store: str, *overrides: str) -> RaceFile:
    os.chdir(place)
    main(["+recipe=tiny_ship", f"store={place / store}", f"hydra.sweep.dir={place / sweep}", *overrides])
    return RaceFile.read(place / sweep)


def killed(place: Path, many: int) -> None:
    """The race, whose process is killed when it is about to draw the so manieth part."""
    drawn, draw = [], candidate.draw_candidate

    def counting(*given: Any) -> None:
        drawn.append(1)
        if len(drawn) == many:
            os.kill(os.getpid(), signal.SIGKILL)
        draw(*given)

    candidate.draw_candidate = counting
    race(place, "killed", "killed-store")


@pytest.fixture(scope="module")
def whole(place: Path) -> RaceFile:
    before = Path.cwd()
    try:
        return race(place, "whole", "store")
    finally:
        os.chdir(before)


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_handlers: None) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_race_names_a_setting_tells_why_others_left_and_draws_not_all(place: Path, whole: RaceFile) -> None:
    assert whole.chosen is not None
    chosen = whole.entries[whole.chosen]
    assert chosen.costs["steps"] == 1
    assert chosen.keeps
    assert {tuple(e.overrides) for e in whole.entries} >= {("format=fp8", "eval.steps=2")}
    assert all(e.left and e.left.why == "dearer" for e in whole.entries if e.costs["steps"] == 2)
    assert whole.pictures == sum(e.prompts for e in whole.entries) < whole.whole == 4 * 16
    text = (place / "whole/report.html").read_text()
    assert 'id="race"' in text
    assert f"Setting {whole.chosen}, format=" in text


def test_what_weights_take_is_foreseen_as_a_run_counts_it(place: Path, whole: RaceFile) -> None:
    run = Run(place / f"whole/{whole.chosen}")
    pinned = run.stored("load", PipelineFile)
    assert pinned is not None
    found: Any = OmegaConf.to_container(OmegaConf.create(run.content.config))
    ahead = foreseen(choose(found), pinned, read_layers(run.directory / "load"))
    assert (ahead["bytes"].low, ahead["bytes"].high) == (run.weight_bytes, run.weight_bytes)
    assert ahead["work"].value == run.weight_bytes  # of one denoising step


def test_a_killed_race_goes_on_and_ends_in_the_same_answer(place: Path, whole: RaceFile) -> None:
    process = fork.Process(target=killed, args=(place, 2))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    parts = [*(place / "killed-store/images-part").glob("*/record.json")]
    assert len(parts) == 1
    made = parts[0].stat().st_mtime_ns
    assert race(place, "killed", "killed-store") == whole
    assert parts[0].stat().st_mtime_ns == made


def test_a_later_race_with_more_prompts_goes_on_from_what_was_drawn(place: Path, whole: RaceFile) -> None:
    before = {p.parent.name for p in (place / "store/images-part").glob("*/record.json")}
    short = race(place, "short", "store", "ship.rounds=[8]")
    assert {p.parent.name for p in (place / "store/images-part").glob("*/record.json")} == before
    assert short.pictures <= whole.pictures


def test_the_answer_runs_as_a_recipe_and_takes_all_from_the_store(place: Path, whole: RaceFile) -> None:
    found = json.loads((place / "whole/ship.json").read_text())
    assert found["chosen"]["number"] == whole.chosen
    assert found["recipe"] == yaml.safe_load((place / "whole/recipes/shipped.yaml").read_text())
    given = [f"store={place / 'store'}", f"hydra.run.dir={place / 'again'}"]
    main(["+recipe=shipped", "--config-dir", str(place / "whole"), *given])
    run = json.loads((place / "again/run.json").read_text())
    assert {s["state"] for s in run["steps"]} <= {"cached", "spare"}
    assert len(json.loads((place / "again/sample/images.json").read_text())["images"]) == found["chosen"]["prompts"]


def test_the_command_on_the_answers_card_is_its_run_alone(place: Path, whole: RaceFile) -> None:
    said = command(Run(place / f"whole/{whole.chosen}"))
    assert said.endswith(" hydra.mode=RUN ship=null")
    os.chdir(place)
    main([*shlex.split(said)[1:], f"store={place / 'store'}", f"hydra.run.dir={place / 'by-card'}"])
    ours, theirs = (json.loads((place / d / "run.json").read_text())["steps"] for d in ("by-card", f"whole/{whole.chosen}"))
    assert {s["state"] for s in ours} <= {"cached", "spare"}
    assert {s["name"]: s["fingerprint"] for s in ours} == {s["name"]: s["fingerprint"] for s in theirs}
    assert not (place / "by-card/ship.json").exists()


def test_a_race_that_nothing_wins_says_what_came_nearest(
    place: Path, whole: RaceFile, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        race(place, "lost", "store", "ship.floor.psnr=99", "ship.rounds=[8]")
    assert "ship.floor: no setting keeps psnr=99 (got at best" in capsys.readouterr().err
    assert not (place / "lost/ship.json").exists()


def test_times_are_measured_once_for_each_program_and_choose_what_is_shipped(
    place: Path, whole: RaceFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopwatch, "_now", map(float, count()).__next__)  # a step takes a second, and a call one more
    space = "ship.space=[{eval.steps: '1,4', seed: '0,1'}]"
    found = race(place, "timed", "timed-store", "~format", "~calib", "eval.latency=true", "ship.want=latency", space)
    times = {tuple(e.overrides): e.costs["latency"] for e in found.entries}
    assert found.by == "latency"
    assert times["eval.steps=1", "seed=0"] == times["eval.steps=1", "seed=1"] == 2
    assert times["eval.steps=4", "seed=0"] == 5
    timed = [json.loads(p.read_text())["steps"] for p in (place / "timed-store/latency").glob("*/latency.json")]
    assert sorted(timed) in ([1, 4], [1, 1, 4])  # and that of the answer, where another one was timed for it
    assert found.chosen is not None
    assert "eval.steps=1" in found.entries[found.chosen].overrides


@pytest.mark.matrix
@pytest.mark.parametrize(("launcher", "package"), [("joblib", "joblib"), ("submitit_local", "submitit"), ("ray", "ray")])
def test_another_launcher_runs_the_rounds_to_the_same_answer(
    place: Path, whole: RaceFile, launcher: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package)
    monkeypatch.setenv("DIFFOPT_JOBS", "2")
    assert race(place, launcher, f"{launcher}-store", f"hydra/launcher={launcher}") == whole


def test_only_settings_that_drew_as_many_prompts_are_called_best(place: Path, whole: RaceFile) -> None:
    found = Findings(place / "whole", [])
    assert found.best is not None
    best = found.best.job
    later = Findings(place / "whole", [])
    fewer = tuple(replace(e, prompts=4) if str(e.number) == best else e for e in whole.entries)
    vars(later)["race"] = replace(whole, entries=fewer)
    assert later.best is not None
    assert later.best.job == str(max((e for e in fewer if e.prompts == 8), key=lambda e: e.means["psnr"]).number) != best
    assert best not in {r.job for r in later.ties}
