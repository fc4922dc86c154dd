"""The places of a sweep's workers, each taken by a process of its own, on machines with as many GPUs as a test says."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffopt.errors import ConfigError
from diffopt.machine import environment, worker

TAKE = (
    "import json, os, sys\n"
    "from diffopt.machine import worker\n"
    "worker.take_place()\n"
    "names = ('CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS')\n"
    "print(json.dumps({n: os.environ[n] for n in names} | {'torch': 'torch' in sys.modules}), flush=True)\n"
    "sys.stdin.read()\n"
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`machine(4)` is one with four GPUs."""

    def has(gpus: int) -> None:
        there = tuple({"name": "a GPU", "capability": "9.0", "memory": 1, "visible": str(i)} for i in range(gpus))
        monkeypatch.setattr(environment, "gpus", lambda: there)

    return has


@pytest.fixture
def workers(machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`workers(gpus=2, jobs=4, many=4)` starts that many at once; yields a function that gives what each got, and them."""
    started: list[subprocess.Popen[str]] = []

    def start(many: int, gpus: int, jobs: int | None = None) -> list[dict[str, Any]]:
        machine(gpus)
        if jobs:
            monkeypatch.setenv(worker.JOBS, str(jobs))
        worker.announce()
        environ = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")} | {"TMPDIR": str(tmp_path)}
        new = [
            subprocess.Popen(
                [sys.executable, "-c", TAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
            )
            for _ in range(many)
        ]
        started.extend(new)
        return [json.loads(p.stdout.readline()) for p in new if p.stdout]

    start.started = started  # type: ignore[attr-defined]
    yield start
    for p in started:
        p.kill()
        p.wait()


def test_each_worker_gets_a_gpu_of_its_own_before_torch_is_loaded(workers) -> None:
    got = workers(many=3, gpus=3)
    assert sorted(g["CUDA_VISIBLE_DEVICES"] for g in got) == ["0", "1", "2"]
    assert not any(g["torch"] for g in got)


def test_more_jobs_than_gpus_are_shared_out_evenly(workers) -> None:
    assert sorted(g["CUDA_VISIBLE_DEVICES"] for g in workers(many=4, gpus=2, jobs=4)) == ["0", "0", "1", "1"]


def test_the_cores_are_divided_among_the_workers(workers) -> None:
    many = 2
    share = max(1, len(os.sched_getaffinity(0)) // many)
    assert {g["OMP_NUM_THREADS"] for g in workers(many=many, gpus=0, jobs=many)} == {str(share)}


def test_a_gpu_of_a_killed_worker_is_free_again(workers) -> None:
    workers(many=1, gpus=1)
    workers.started[0].kill()
    assert [g["CUDA_VISIBLE_DEVICES"] for g in workers(many=1, gpus=1)] == ["0"]


def test_a_worker_ends_with_its_sweep(tmp_path: Path, machine) -> None:
    sweep = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    variables = {worker.SWEEP: str(sweep.pid), worker.GPUS: "", worker.JOBS: "1", "TMPDIR": str(tmp_path)}
    job = subprocess.Popen(
        [sys.executable, "-c", TAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=os.environ | variables,
    )  # fmt: skip
    assert job.stdout
    job.stdout.readline()
    sweep.kill()  # not waited for: a sweep that nobody buries has ended too
    assert job.wait() != 0  # it reads what nobody writes: by itself it does not end
    sweep.wait()


@pytest.mark.parametrize(("gpus", "cores", "jobs"), [(0, 1, 1), (0, 2, 2), (0, 16, 4), (0, 96, 8), (8, 96, 8), (1, 96, 1)])
def test_as_many_jobs_as_gpus_or_a_few_on_a_cpu(machine, monkeypatch, gpus: int, cores: int, jobs: int) -> None:
    machine(gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert worker.jobs() == jobs


def test_the_user_decides_how_many(machine, monkeypatch) -> None:
    machine(2)
    monkeypatch.setenv(worker.JOBS, "5")
    assert worker.jobs() == 5


@pytest.mark.parametrize("value", ["0", "many", "-1"])
def test_a_number_of_jobs_that_is_none_is_refused(machine, monkeypatch, value: str) -> None:
    monkeypatch.setenv(worker.JOBS, value)
    with pytest.raises(ConfigError, match=f"DIFFOPT_JOBS.*{value}"):
        worker.jobs()


THERE = tuple({"visible": str(i), "uuid": f"GPU-{i}abc", "name": f"card {i}"} for i in range(4))


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("2", ["card 2"]),
        ("3,1", ["card 3", "card 1"]),
        ("GPU-1", ["card 1"]),
        ("1,9,2", ["card 1"]),
        ("MIG-1f", ["card 0"]),
    ],
)
def test_a_machine_has_the_gpus_that_cuda_shows(listed: str, names: list[str]) -> None:
    found = environment.visible(THERE, listed)
    assert [g["name"] for g in found] == names
    assert [g["visible"] for g in found] == listed.split(",")[: len(names)]


def test_the_machine_is_the_same_to_each_of_its_gpus_workers(machine) -> None:
    machine(4)
    four = environment.machine()
    machine(1)
    assert environment.machine() == four
