"""Sweeps whose jobs run in other processes: what fails, what is killed, and what two of them do in one store.

The first need no model: the store has everything but what fails. The last compute on the embedded model.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import some
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from waiting import until

from diffopt.cli.searchpath import bundled, register
from diffopt.errors import ConfigError
from diffopt.jobs import job
from diffopt.machine import worker
from diffopt.sweep.plan import join

RECIPE = ("+recipe=emoji_int8_sq", "calib.n_steps=2", "calib.batch_size=2", "calib.chunk=2")
MACHINE = {"cpu": "a CPU", "cores": 2, "gpus": []}
PROVENANCE = {"diffopt": "0", "packages": {}, "machine": MACHINE, "seconds": 0.0, "peak_bytes": {}}
LAUNCHERS = {"basic": "hydra", "joblib": "joblib", "submitit_local": "submitit", "ray": "ray"}


def start(where: Path, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    """`python -m diffopt ...` in a directory, its jobs' store below it."""
    command = [sys.executable, "-m", "diffopt", *arguments]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("DIFFOPT_")} | variables
    return subprocess.Popen(command, cwd=where, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate()
    return process.returncode, out, err


def fill(where: Path, *overrides: str) -> None:
    """Put an empty artifact for every step of these overrides into the store."""
    register()
    with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
        config = compose("config", [job.spelled(o) for o in overrides])
    OmegaConf.update(config, "store", str(where / "outputs" / "store"))
    prepared = job.prepare(config, [o for o in overrides if o.endswith("=null")], dry=True, sweep=True)
    for step in prepared.plan.steps:
        if not prepared.store.entry(step.kind, step.fingerprint):
            prepared.store.open()
            with prepared.store.publish(step.kind, step.fingerprint, step.identity, PROVENANCE):
                pass


def runs(sweep: Path) -> dict[str, Any]:
    """By job, its run.json; of a failed one its error."""
    found: dict[str, Any] = {p.parent.name: json.loads(p.read_text()) for p in sweep.glob("*/run.json")}
    return found | {p.parent.name: p.read_text() for p in sweep.glob("*/error.txt")}


@pytest.mark.parametrize("launcher", some(LAUNCHERS, ["joblib"]))
def test_a_job_that_fails_leaves_the_others_and_the_page_complete(tmp_path: Path, launcher: str) -> None:
    if not find_spec(LAUNCHERS[launcher]):
        pytest.skip(f"{LAUNCHERS[launcher]} is not installed")
    for alpha in ("0.2", "0.8"):
        fill(tmp_path, *RECIPE, "~eval", "calib.size=4", f"calib.alpha={alpha}")
    asked = (*RECIPE, "eval=null", "calib.size=4", "calib.alpha=0.2,7,0.8", "--multirun", "hydra.sweep.dir=swept")
    code, out, err = end(start(tmp_path, *asked, f"hydra/launcher={launcher}", DIFFOPT_JOBS="2"))
    found = runs(tmp_path / "swept")
    assert code == 1
    assert "1 of 3 jobs failed (got of job 1: calib.alpha: " in err
    assert "Traceback" not in err
    assert "Error executing job" not in err
    assert found["1"].startswith("calib.alpha: must be less than or equal to 1 (got 7)")
    assert [found[n]["overrides"][-1] for n in ("0", "2")] == ["calib.alpha=0.2", "calib.alpha=0.8"]
    page = (tmp_path / "swept" / "report.html").read_text()
    assert "3 jobs" in page
    assert "must be less than or equal to 1" in page
    assert out.count("sweep   3 jobs, 2 distinct, 1 failed") == 1


ENV = {"worker_process_setup_hook": "diffopt.machine.worker.arrive", "env_vars": {"DIFFOPT_STORE": "s"}}


@pytest.mark.parametrize(
    ("init", "after"),
    [
        ({"address": None}, {"address": None}),
        ({"address": "auto"}, {"address": "auto", "object_store_memory": None, "runtime_env": ENV}),
        (
            {"address": "auto", "object_store_memory": 7, "runtime_env": {"pip": ["x"], "env_vars": {"A": "b"}}},
            {
                "address": "auto",
                "object_store_memory": 7,
                "runtime_env": ENV | {"pip": ["x"], "env_vars": ENV["env_vars"] | {"A": "b"}},
            },
        ),
    ],
)
def test_jobs_on_a_ray_that_is_there_run_where_the_sweep_was_started(
    init: dict[str, Any], after: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its launcher gives a size for the objects' memory, which Ray refuses; tests/soak_ray.py joins one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFOPT_STORE", "s")
    launcher = {"_target_": "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher", "ray": {"init": init}}
    config = OmegaConf.create({"hydra": {"launcher": launcher}})
    OmegaConf.set_struct(config, True)
    join(config)
    found = OmegaConf.to_container(config.hydra.launcher.ray.init)
    variables = found.get("runtime_env", {}).get("env_vars", {})
    assert variables.pop("DIFFOPT_DIRECTORY", None) == (str(tmp_path) if init["address"] else None)
    assert found == after


def test_a_node_without_the_directory_of_the_sweep_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    monkeypatch.setenv(worker.DIRECTORY, str(tmp_path / "there"))
    worker.arrive()
    assert Path.cwd() == tmp_path / "there"
    monkeypatch.setenv(worker.DIRECTORY, str(tmp_path / "gone"))
    with pytest.raises(
        ConfigError, match=r"no such file or directory \(got '.*gone'\); start it on a disk that all nodes share"
    ):
        worker.arrive()


@pytest.mark.matrix
def test_a_search_goes_on_after_a_job_that_failed(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    fill(tmp_path, *RECIPE, "~eval", "calib.size=4", "calib.alpha=0.2")
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweep.dir=swept")
    code, _, err = end(start(tmp_path, *RECIPE, "eval=null", "calib.size=4", "calib.alpha=choice(0.2,7)", "-m", *search))
    assert code == 1
    assert "Traceback" not in err
    assert len(runs(tmp_path / "swept")) == 3


def test_a_sweep_that_is_no_use_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    code, out, err = end(start(tmp_path, *RECIPE, "format=fp8", "calib.alpha=0.2,0.8", "--multirun"))
    assert (code, out) == (1, "")
    assert err.startswith("calib.alpha: has no effect under format=fp8, since SmoothQuant alone reads it")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A sweep is killed once it has observed something; then it goes on in its directory, in two processes, and at the same
    time the same sweep runs in one process elsewhere, on the same store.
    """
    pytest.importorskip("joblib")
    where = tmp_path_factory.mktemp("sweeps")
    store = where / "outputs" / "store"
    asked = (*RECIPE, "eval=null", "calib.size=2,4", "calib.alpha=0.2,0.8", "--multirun")
    killed = start(where, *asked, "hydra.sweep.dir=first")
    until(lambda: killed.poll() is not None or list(store.glob("calib-chunk/*/record.json")))
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = {p: p.stat().st_mtime_ns for p in store.glob("*/*/record.json")}
    again = (*asked, "hydra/launcher=joblib", "hydra.sweep.dir=first")
    both = [start(where, *again, DIFFOPT_JOBS="2"), start(where, *asked, "hydra.sweep.dir=second")]
    ended = [end(p) for p in both]
    return {"where": where, "store": store, "killed": killed.returncode, "before": before, "ended": ended}


@pytest.mark.matrix
def test_a_killed_sweep_goes_on_from_where_it_was(interrupted: dict[str, Any]) -> None:
    assert interrupted["killed"] == -signal.SIGKILL
    assert [(code, err) for code, _, err in interrupted["ended"]] == [(0, ""), (0, "")]
    assert interrupted["before"]
    assert {p: p.stat().st_mtime_ns for p in interrupted["before"]} == interrupted["before"]
    found = runs(interrupted["where"] / "first")
    assert sorted(found) == ["0", "1", "2", "3"]
    assert any(s["state"] == "cached" for s in found["0"]["steps"])


@pytest.mark.matrix
def test_two_sweeps_on_one_store_make_nothing_twice_and_lose_nothing(interrupted: dict[str, Any]) -> None:
    made: Counter[str] = Counter()
    used = set()
    for name in ("first", "second"):
        for run in runs(interrupted["where"] / name).values():
            made.update(s["fingerprint"] for s in run["steps"] if s["state"] == "made")
            used |= {(s["kind"], s["fingerprint"]) for s in run["steps"] if s["state"] != "spare"}
    assert set(made.values()) <= {1}
    assert all((interrupted["store"] / kind / fingerprint / "record.json").is_file() for kind, fingerprint in used)
    assert len([kind for kind, _ in used if kind == "checkpoint"]) == 4


@pytest.mark.matrix
def test_both_sweeps_have_the_same_results(interrupted: dict[str, Any]) -> None:
    results = [json.loads((interrupted["where"] / n / "results.json").read_text())["jobs"] for n in ("first", "second")]
    assert [j["wanted"] for j in results[0]] == [j["wanted"] for j in results[1]]
