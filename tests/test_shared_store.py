"""Stores that several people, machines and processes share: copied in with proof, read where nothing may be written."""

import logging
import multiprocessing
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_corruption import filled
from waiting import until

from diffopt.artifact import Checkpoint
from diffopt.cli.store import command
from diffopt.errors import GateError, MetricError, StoreError, pass_on
from diffopt.jobs.plan import Plan, Step
from diffopt.jobs.runner import run_plan
from diffopt.stage import Stage
from diffopt.store.entry import RECORD
from diffopt.store.files import sha256
from diffopt.store.source import Sources
from diffopt.store.store import Store
from diffopt.view import Choices

fork = multiprocessing.get_context("fork")


def of(store: Store, *arguments: object) -> None:
    command(["--store", str(store.root), *map(str, arguments)])


def sums(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): sha256(p) for p in root.rglob("*") if p.is_file() and p.suffix != ".lock"}


# Between machines.


def test_what_was_exported_is_imported_as_the_same_artifact(tmp_path: Path) -> None:
    theirs, mine = filled(tmp_path / "theirs"), Store(tmp_path / "mine")
    for number, entry in enumerate(theirs.entries()):
        of(theirs, "export", f"{entry.kind}/{entry.fingerprint}", tmp_path / str(number), "--bare")
        (tmp_path / str(number) / "modelopt.pt").write_text("added by an export, and not the artifact's")
    of(mine, "import", *(tmp_path / str(number) for number in range(len(theirs.entries()))))
    assert [(e.kind, e.fingerprint) for e in mine.entries()] == [(e.kind, e.fingerprint) for e in theirs.entries()]
    of(mine, "verify")
    own, other = sums(mine.root), sums(theirs.root)
    assert {k: x for k, x in own.items() if not k.endswith(RECORD)} == {
        k: x for k, x in other.items() if not k.endswith(RECORD)
    }


@pytest.mark.parametrize("how", ["changed", "missing", "relabelled", "no record", "link"])
def test_what_is_not_as_it_was_made_is_not_imported(how: str, tmp_path: Path) -> None:
    theirs, mine = filled(tmp_path / "theirs"), Store(tmp_path / "mine")
    one, other, *_ = theirs.entries("checkpoint")
    out = tmp_path / "out"
    of(theirs, "export", one.fingerprint, out, "--bare")
    weights = out / "weights.safetensors"
    if how == "changed":
        weights.write_bytes(weights.read_bytes()[::-1])
    elif how == "missing":
        weights.unlink()
    elif how == "relabelled":
        shutil.copy(other.path / RECORD, tmp_path / RECORD)
        (tmp_path / RECORD).rename(out / RECORD)
    elif how == "no record":
        (out / RECORD).unlink()
    else:
        weights.unlink()
        weights.symlink_to(one.path / "weights.safetensors")
    with pytest.raises(StoreError, match=r"^store import: "):
        of(mine, "import", out)
    assert not mine.entries()
    assert not [*mine.root.glob("tmp/*-*")]


# Where nothing may be written.


def step() -> Step:
    def make(ctx) -> None:
        (ctx.out / "x").write_text("x")

    return Step("one", Stage("one", make, 1, None, (), (), Checkpoint), {}, frozenset(), {}, {"stage": "one"})


def run_one(store: Store) -> str:
    made = step()
    (done,) = run_plan(Plan([made], [made], []), Choices(seed=0), store, Sources(store.sources))
    return str(done.state)


def test_what_a_shared_store_has_is_not_made_again_and_nothing_is_written_there(tmp_path: Path) -> None:
    team = Store(tmp_path / "team")
    run_one(team)
    before = sums(team.root)
    mine = Store.at(f"{tmp_path / 'mine'}:{team.root}")
    assert run_one(mine) == "cached"
    assert not mine.entries()
    assert [e.path.parent.parent for e in mine.all_entries()] == [team.root]
    assert sums(team.root) == before


def test_a_broken_artifact_of_a_shared_store_is_refused(tmp_path: Path) -> None:
    team = Store(tmp_path / "team")
    run_one(team)
    path = team.entries()[0].path / "x"
    path.chmod(0o644)
    path.write_text("other")
    with pytest.raises(StoreError, match="x has 5 bytes, but was made with 1"):
        run_one(Store.at(f"{tmp_path / 'mine'}:{team.root}"))


def test_a_shared_store_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="a shared store is no directory"):
        Store.at(f"{tmp_path / 'mine'}:{tmp_path / 'gone'}")


# Several processes.


def test_a_wait_for_another_process_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path / "store")
    held, done = fork.Event(), fork.Event()

    def hold() -> None:
        with store.lock("a" * 16):
            held.set()
            done.wait()

    process = fork.Process(target=hold)
    process.start()
    held.wait()
    caplog.set_level(logging.INFO, "diffopt")
    logging.getLogger("diffopt").addHandler(handler := Freeing(done))
    try:
        with store.lock("a" * 16):
            assert "waiting for another process, which makes " + "a" * 16 in caplog.text
    finally:
        logging.getLogger("diffopt").removeHandler(handler)
    process.join()


class Freeing(logging.Handler):
    """Lets the other go when the wait is said."""

    def __init__(self, done) -> None:
        super().__init__()
        self.done = done

    def emit(self, record: logging.LogRecord) -> None:
        self.done.set()


# Ended from outside.

WORKING = """
import sys, time
from diffopt.cli import main
from diffopt.stages import load

def slow(ctx, **views):
    (ctx.out / "half").write_text("half")
    print("at work", flush=True)
    try:
        time.sleep(100)
    except BaseException:
        if AGAIN:  # as torch does within its own calls
            raise ValueError("could not determine the shape of an object") from None
        raise

object.__setattr__(load.load, "run", slow)
sys.argv = ["diffopt", "+recipe=quickstart"]
main.main()
"""


@pytest.mark.parametrize(("number", "again"), [(signal.SIGTERM, False), (signal.SIGHUP, False), (signal.SIGTERM, True)])
def test_a_run_that_is_terminated_says_so_and_leaves_no_scratch(number: signal.Signals, again: bool, tmp_path: Path) -> None:
    """Also where a library makes `again` another error of it."""
    started = subprocess.Popen(
        [sys.executable, "-c", WORKING.replace("AGAIN", str(again))],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # which tests under nohup hand on as ignored
    )
    scratch = tmp_path / "outputs" / "store" / "tmp"
    until(lambda: [*scratch.glob("*-*/half")] or started.poll() is not None)
    with pytest.raises(
        StoreError, match=rf"store gc: a run is live \(got .*/outputs/runs/quickstart/.*, process {started.pid} on"
    ):
        command(["--store", str(scratch.parent), "gc", "--yes"])
    started.send_signal(number)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 128 + number
    assert said.splitlines()[-1] == (
        f"terminated by {number.name}; finished steps are in the store, the same command goes on from them"
    )
    assert not [p for p in scratch.iterdir() if p.is_dir()]


# Without memory.


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "one: there is no more memory (got MemoryError)"),
        (OSError(12, "Cannot allocate memory"), "one: there is no more memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "one: there is no more memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "one: there is no more GPU memory"),
    ],
    ids=repr,
)
def test_a_lack_of_memory_is_said_in_a_line_and_leaves_nothing(error: Exception, said: str, tmp_path: Path) -> None:
    def make(ctx) -> None:
        (ctx.out / "half").write_text("half")
        raise error

    made = Step("one", Stage("one", make, 1, None, (), (), Checkpoint), {}, frozenset(), {}, {"stage": "one"})
    store = Store(tmp_path / "store")
    with pytest.raises(GateError) as caught:
        run_plan(Plan([made], [made], []), Choices(seed=0), store, Sources(store.sources))
    assert str(caught.value).startswith(said)
    assert not [p for p in (store.root / "tmp").iterdir() if p.is_dir()]


def test_a_lack_of_memory_is_not_blamed_on_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffopt.metrics import encoder

    def lacks(*_: object) -> None:
        raise MemoryError

    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    monkeypatch.setattr(encoder, "_clip", lacks)
    with pytest.raises(MemoryError):
        encoder.load(tmp_path, "cpu")
    monkeypatch.undo()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(MetricError, match="download it again"):
        encoder.load(tmp_path, "cpu")


def test_an_error_of_ours_is_passed_on_as_it_is() -> None:
    pass_on(GateError("train: a GPU's memory is full (got CUDA out of memory); lower the batch"))
