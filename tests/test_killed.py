"""A run that is killed while it calibrates, and the one after it."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed
from soak_chains import CHAINS, NOT_HERE, PACKAGE, stages
from tiny import ONE, PROMPTS, saved

from diffopt.jobs import job
from diffopt.jobs.job import Job
from diffopt.jobs.runner import run_plan
from diffopt.pipeline.calibration import Calibration

fork = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A process that is forked has none of its parent's threads; on some CPUs the last bits are of how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[[str], Job]:
    """`prepare(store)`: the tiny FLUX in INT8 by six prompts, in a chunk of four and one of two."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:6]))
    size = ["model.height=32", "model.width=32", "model.max_sequence_length=16", "model.long_prompts=cut"]
    calibration = ["calib=default", "calib.size=6", "calib.batch_size=2", "calib.chunk=4", "calib.n_steps=2"]
    where = [f"model.source={saved('flux', **ONE)}", f"calib.prompts={tmp_path / 'prompts.txt'}"]
    picks = ["model=flux_dev", "model.dtype=float32", "format=int8_sq", *size, *calibration, *where]
    return lambda name: job.prepare(composed(*picks, f"store={tmp_path / name}"), [], dry=False, sweep=False)


def run(made: Job) -> dict[str, str]:
    """What became of each step."""
    return {d.step.name: d.state for d in run_plan(made.plan, made.choices, made.store, made.sources)}


def killed_in_the_second_chunk(made: Job) -> None:
    calls, calibrate = [], Calibration.__call__

    def killed(self: Calibration, *given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return calibrate(self, *given)

    def begin() -> None:
        Calibration.__call__ = killed  # type: ignore[method-assign]
        run(made)

    process = fork.Process(target=begin)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_run_killed_while_it_observes_keeps_the_chunks_before_and_ends_as_one_that_was_not(
    prepare: Callable[[str], Job],
) -> None:
    killed_in_the_second_chunk(prepare("killed"))
    again, whole = prepare("killed"), prepare("whole")
    states = run(again)
    assert {states[n] for n in ("load", "embed.0", "observe.0")} == {"cached"}
    assert {states[n] for n in ("observe.1", "merge", "quantize")} == {"made"}
    assert set(run(whole).values()) == {"made"}
    ours, theirs = (x.store.entry(s.kind, s.fingerprint).path for x in (again, whole) for s in x.plan.wanted)  # type: ignore[union-attr]
    files = sorted(p.name for p in theirs.iterdir() if p.name != "record.json")
    assert len(files) > 1
    assert [(ours / n).read_bytes() for n in files] == [(theirs / n).read_bytes() for n in files]


def test_every_stage_is_in_a_chain_that_the_soak_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("few.txt").write_text("a red apple\na blue fish\n")
    planned = set()
    for chain in CHAINS.values():
        if not any(PACKAGE in p for p in chain.picks):  # which adopts it and deploys it
            picks = [p for p in chain.picks if not p.startswith("hydra.")]
            planned |= {s.stage.name for s in job.prepare(composed(*picks), [], dry=True, sweep=False).plan.steps}
    assert {*stages()} - planned - {*NOT_HERE} == {"adopt", "deploy"}
