"""An artifact is whole or not there, made once, as it was made, and kept while a run refers to it."""

import errno
import json
import multiprocessing
import os
import re
import signal
import stat
import subprocess
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import contents
import pytest
from waiting import until

from diffopt.artifact import Artifact, Checkpoint
from diffopt.cli.store import command
from diffopt.cli.store_list import HEAD, RIGHT
from diffopt.errors import PlanError, StoreError
from diffopt.files.pipeline import PipelineFile
from diffopt.files.run import RunFile
from diffopt.jobs.plan import Plan, Step
from diffopt.jobs.runner import run_plan, write_run
from diffopt.stage import Stage
from diffopt.store.entry import RECORD
from diffopt.store.fingerprint import fingerprint
from diffopt.store.garbage import garbage
from diffopt.store.source import Source, Sources
from diffopt.store.store import Store
from diffopt.view import Choices

fork = multiprocessing.get_context("fork")

IDENTITIES = {fingerprint(x): x for x in ({"stage": "quantize", "config": {"format": {"number": i}}} for i in range(100))}
FP, OTHER, *MORE = IDENTITIES
HOUSE_STYLE = re.compile(r"store(?: \w+)?: .+ \(got .+\); .+")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def publish(store, name=FP, kind="checkpoint", **files):
    """An artifact with these files, or with two of its own."""
    with store.publish(kind, name, IDENTITIES[name], {"seconds": 1.0}) as out:
        (out / "deep").mkdir()
        (out / "deep" / "b.bin").write_bytes(b"12345")
        (out / "a.json").write_text('{"a": 1}')
        for file, content in files.items():
            (out / file).write_bytes(content)
    return store.root / kind / name


def change(path, content):
    """Change a file of an artifact by hand, against its permissions."""
    path.parent.chmod(0o755)
    path.chmod(0o644)
    path.write_bytes(content)


def tree(root):
    """Every file below `root` that is neither a lock nor an empty directory, with its content."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.suffix != ".lock"}


def leftovers(store):
    return [p for p in (store.root / "tmp").iterdir() if p.is_dir()]


# published whole


def test_looking_into_a_store_makes_no_directory(store):
    assert store.entry("checkpoint", FP) is None
    assert store.entries() == []
    assert garbage(store) == ([], [])
    assert not store.root.exists()


def test_what_was_published_is_found(store):
    path = publish(store)
    assert store.entry("checkpoint", FP).path == path
    assert (path / "deep" / "b.bin").read_bytes() == b"12345"


def test_an_artifact_appears_at_once_with_its_record_written(store, monkeypatch):
    seen = []

    def rename(source, target, rename=os.rename):
        seen.append(((Path(source) / RECORD).is_file(), Path(target).exists()))
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename)
    publish(store)
    assert seen == [(True, False)]


def test_the_record_has_identity_provenance_and_every_file(store):
    publish(store)
    record = store.entry("checkpoint", FP).record
    assert record["identity"] == IDENTITIES[FP]
    assert record["provenance"] == {"seconds": 1.0}
    assert {name: f["size"] for name, f in record["files"].items()} == {"a.json": 8, "deep/b.bin": 5}
    assert re.fullmatch("[0-9a-f]{64}", record["files"]["a.json"]["sha256"])


def test_provenance_is_what_it_was_at_the_end(store):
    provenance = {}
    with store.publish("checkpoint", FP, IDENTITIES[FP], provenance):
        provenance["seconds"] = 2.5
    assert store.entry("checkpoint", FP).record["provenance"] == {"seconds": 2.5}


def test_an_artifact_is_read_only(store):
    path = publish(store)
    assert all(not p.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) for p in (path, *path.rglob("*")))


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()], ids=repr)
def test_a_build_that_fails_leaves_nothing(store, error):
    def build():
        with store.publish("checkpoint", FP, IDENTITIES[FP], {}) as out:
            (out / "half").write_text("half")
            raise error

    with pytest.raises(type(error)):
        build()
    assert store.entry("checkpoint", FP) is None
    assert leftovers(store) == []


def test_a_build_that_fails_at_the_very_last_leaves_nothing(store, monkeypatch):
    def rename(*_):
        raise ValueError("at the rename")

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(ValueError, match="at the rename"):
        publish(store)
    assert store.entries() == []
    assert leftovers(store) == []


def killed_while_building(store):
    def build():
        with store.lock(FP), store.publish("checkpoint", FP, IDENTITIES[FP], {}) as out:
            (out / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    process = fork.Process(target=build)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_build_leaves_nothing_that_looks_finished(store):
    killed_while_building(store)
    assert store.entry("checkpoint", FP) is None
    assert store.entries() == []


def test_a_killed_build_is_made_again(store):
    killed_while_building(store)
    with store.lock(FP):
        publish(store)
    assert store.entry("checkpoint", FP)


def test_what_a_killed_build_left_is_garbage(store):
    killed_while_building(store)
    assert garbage(store) == ([], leftovers(store))
    assert len(leftovers(store)) == 1


def test_what_a_running_build_has_made_is_not_garbage(store):
    with store.lock(FP), store.publish("checkpoint", FP, IDENTITIES[FP], {}):
        assert garbage(store) == ([], [])


def test_a_directory_that_lost_its_record_is_made_again(store):
    path = publish(store)
    path.chmod(0o755)
    (path / RECORD).unlink()
    publish(store)
    assert store.entry("checkpoint", FP)


# made once


def test_two_processes_that_want_the_same_artifact_make_it_once(tmp_path):
    made, inside, asked, doubled = fork.Value("i", 0), fork.Event(), fork.Event(), fork.Event()

    def make(ctx):
        with made.get_lock():
            made.value += 1
            first = made.value == 1
        if not first:
            doubled.set()
            return
        inside.set()
        asked.wait()
        doubled.wait(0.4)  # the other comes here too in this time, if nothing holds it back
        (ctx.out / "x").write_text("x")

    class Asked(Store):
        def lock(self, fingerprint):
            if inside.is_set():
                asked.set()
            return super().lock(fingerprint)

    def job(state):
        step = Step("slow", Stage("slow", make, 1, None, (), (), Checkpoint), {}, frozenset(), {}, {"stage": "slow"})
        (done,) = run_plan(Plan([step], [step], []), Choices(seed=0), Asked(tmp_path), Sources(tmp_path / "sources.json"))
        assert done.state == state

    first, second = fork.Process(target=job, args=("made",)), fork.Process(target=job, args=("cached",))
    first.start()
    until(lambda: inside.is_set() or first.exitcode is not None)
    second.start()
    first.join()
    second.join()
    assert made.value == 1
    assert (first.exitcode, second.exitcode) == (0, 0)


def test_a_lock_is_free_again_after_its_holder_is_killed(store):
    killed_while_building(store)
    with store.lock(FP):
        assert garbage(store) == ([], [])


# checked


def test_a_truncated_file_is_noticed_on_use(store):
    change(publish(store) / "deep" / "b.bin", b"123")
    with pytest.raises(StoreError, match=rf"checkpoint/{FP}: deep/b\.bin .*3 .*5") as caught:
        store.entry("checkpoint", FP)
    assert "verify --drop" in str(caught.value)


def test_a_missing_file_is_noticed_on_use(store):
    path = publish(store)
    (path / "deep").chmod(0o755)
    (path / "deep" / "b.bin").unlink()
    with pytest.raises(StoreError, match=r"deep/b\.bin is missing"):
        store.entry("checkpoint", FP)


@pytest.mark.parametrize("content", [b"", b"{", b"{}"])
def test_a_broken_record_is_noticed_on_use(store, content):
    change(publish(store) / RECORD, content)
    with pytest.raises(StoreError, match=RECORD):
        store.entry("checkpoint", FP)


def test_a_file_of_the_same_size_is_noticed_by_its_hash(store):
    change(publish(store) / "deep" / "b.bin", b"54321")
    assert store.entry("checkpoint", FP).problems() == ["deep/b.bin has other bytes than when it was made"]


def test_an_added_file_is_noticed(store):
    path = publish(store)
    path.chmod(0o755)
    (path / "new").touch()
    with pytest.raises(StoreError, match="new was added"):
        store.entry("checkpoint", FP)
    assert [e.problems() for e in store.entries()] == [["new was added"]]


def test_a_sound_artifact_has_no_problems(store):
    publish(store)
    assert store.entry("checkpoint", FP).problems() == []


# diffopt store


def run(store, *arguments):
    command(["--store", str(store.root), *arguments])


def run_in(directory, name, artifacts, store, config="model: {}"):
    """A run of a recipe that refers to these artifacts."""
    directory.mkdir(parents=True)
    replace(RunFile.of(contents.RUN), name=name, config=config).write(directory)
    store.refer(directory, artifacts)


def pipeline_in(store, name, source, family):
    pinned = PipelineFile(source, family, "pretrained", "float32", None, {}, ("transformer",), 1, {}, None, 8)
    publish(store, name, kind="pipeline", **{"pipeline.json": pinned.to_json().encode()})


def test_verify_names_every_artifact_that_was_changed(store, capsys):
    publish(store)
    change(publish(store, OTHER) / "a.json", b"{}")
    with pytest.raises(StoreError, match="1 of 2"):
        run(store, "verify")
    assert f"checkpoint/{OTHER}: a.json" in capsys.readouterr().out


def test_verify_keeps_what_was_changed(store):
    change(publish(store) / "a.json", b"{}")
    with pytest.raises(StoreError):
        run(store, "verify")
    assert (store.root / "checkpoint" / FP / "a.json").exists()


def test_verify_drop_removes_what_was_changed_and_no_more(store):
    publish(store)
    change(publish(store, OTHER) / "a.json", b"{}")
    run(store, "verify", "--drop")
    assert [e.fingerprint for e in store.entries()] == [FP]
    assert not (store.root / "checkpoint" / OTHER).exists()


@pytest.mark.parametrize("content", [b"{", b"{}"])
def test_verify_drop_removes_what_has_a_broken_record(store, content):
    change(publish(store) / RECORD, content)
    run(store, "verify", "--drop")
    assert store.entries() == []


def test_verify_drop_removes_what_was_made_from_what_was_changed(store, capsys):
    parent = publish(store, kind="onnx")
    for graph in (FP, OTHER):
        identity = {"stage": "build", "inputs": {"graph": graph}}
        with store.publish("engine", fingerprint(identity), identity, {"seconds": 1}) as out:
            (out / "model.plan").write_text("plan")
    change(next(p for p in parent.rglob("*") if p.name != RECORD and p.is_file()), b"other bytes")
    run(store, "verify", "--drop")
    assert [e.inputs for e in store.entries()] == [{OTHER}]


def test_gc_keeps_what_an_existing_run_refers_to_and_removes_the_rest(store, tmp_path):
    (tmp_path / "run").mkdir()
    publish(store)
    publish(store, OTHER)
    store.refer(tmp_path / "run", [("checkpoint", FP)])
    run(store, "gc", "--yes")
    assert [e.fingerprint for e in store.entries()] == [FP]
    assert not (store.root / "checkpoint" / OTHER).exists()


def test_gc_removes_what_only_a_removed_run_refers_to(store, tmp_path):
    publish(store)
    store.refer(tmp_path / "gone", [("checkpoint", FP)])
    run(store, "gc", "--yes")
    assert store.entries() == []
    assert garbage(store) == ([], [])


def test_gc_removes_what_killed_builds_left(store):
    killed_while_building(store)
    run(store, "gc", "--yes")
    assert leftovers(store) == []


def test_gc_without_yes_only_lists(store, capsys):
    publish(store)
    run(store, "gc")
    assert f"checkpoint/{FP}" in capsys.readouterr().out
    assert store.entry("checkpoint", FP)


def test_gc_survives_a_half_written_reference(store, tmp_path):
    (tmp_path / "run").mkdir()
    publish(store)
    store.refer(tmp_path / "run", [("checkpoint", FP)])
    (store.root / "roots" / "cut.json").write_text('{"run": "/so')
    run(store, "gc", "--yes")
    assert store.entry("checkpoint", FP)


def test_an_artifact_is_found_by_the_start_of_its_fingerprint_and_by_its_kind(store):
    publish(store)
    publish(store, OTHER)
    assert store.find(FP[:4]).fingerprint == FP
    assert store.find(f"checkpoint/{OTHER[:5]}").fingerprint == OTHER


def test_a_start_that_fits_two_artifacts_is_refused(store):
    one, other = next((a, b) for a in IDENTITIES for b in IDENTITIES if a < b and a[0] == b[0])
    publish(store, one)
    publish(store, other)
    with pytest.raises(StoreError, match=f"2 artifacts.*{one[0]}"):
        store.find(one[0])


def test_a_start_that_fits_no_artifact_is_refused(store):
    publish(store)
    with pytest.raises(StoreError, match=r"no artifact.*nowhere"):
        store.find("nowhere")


def test_ls_lists_every_artifact_with_its_size(store, capsys):
    publish(store)
    publish(store, OTHER, kind="onnx")
    run(store, "ls")
    said = capsys.readouterr().out
    assert FP in said
    assert OTHER in said
    assert "13 B" in said


def test_ls_of_a_kind_lists_only_that_kind(store, capsys):
    publish(store)
    publish(store, OTHER, kind="onnx")
    run(store, "ls", "onnx")
    said = capsys.readouterr().out
    assert OTHER in said
    assert FP not in said


def test_a_line_of_ls_has_the_date_the_stage_the_model_and_the_recipe(store, capsys, tmp_path):
    pipeline_in(store, FP, "hub:org/name@" + "0" * 40, "flux")
    encoded = {"stage": "encode", "inputs": {"pipeline": FP}}
    scored = {"stage": "score", "inputs": {"texts": [fingerprint(encoded)]}}
    score = fingerprint(scored)
    with store.publish("eval-embeddings", fingerprint(encoded), encoded, {"seconds": 12345.6}):
        pass
    with store.publish("metrics", score, scored, {"seconds": 0.1}):
        pass
    for name in ("mine", "yours"):
        run_in(tmp_path / "runs" / name / "2026-01-01", name, [("metrics", score)], store)
    os.utime(store.root / "metrics" / score / "record.json", (1.0e9, 1.0e9))
    run(store, "ls")
    head, *rows, total = capsys.readouterr().out.splitlines()
    cells = {row.split()[0]: row for row in rows}
    date = f"{datetime.fromtimestamp(1.0e9):%Y-%m-%d %H:%M}"
    assert re.fullmatch(rf"metrics +{score} +0 B +0\.1 s +{date} +score +org/name +(mine|yours) \+1", cells["metrics"])
    assert re.search(r"encode +org/name +-$", cells["eval-embeddings"])
    assert total.startswith("3 artifacts, ")
    for i, name in enumerate(HEAD):  # each column begins, or ends, where its heading does
        at = head.index(name)
        end = at + len(name)
        for row in rows:
            assert (row[end - 1] != " " and row[end : end + 2] in ("  ", "")) if i in RIGHT else row[at - 2 : at].strip() == ""


def test_a_local_model_is_called_as_its_runs_call_it_and_else_by_its_family(store, capsys, tmp_path):
    pipeline_in(store, FP, "sha256:0123456789abcdef", "sdxl")
    run(store, "ls", "pipeline")
    assert "sdxl (sha256:0123456789abcdef)" in capsys.readouterr().out
    run_in(tmp_path / "runs/mine/2026", "mine", [("pipeline", FP)], store, "model: {source: models/mine}")
    run(store, "ls", "pipeline")
    assert re.search(r" models/mine +mine$", capsys.readouterr().out.splitlines()[1])


def test_ls_of_a_kind_that_there_is_not_is_refused(store):
    publish(store)
    with pytest.raises(StoreError, match=r"no such kind \(got 'onxn'\); did you mean onnx\?"):
        run(store, "ls", "onxn")


def test_show_prints_the_record(store, capsys):
    publish(store)
    run(store, "show", FP[:4])
    said = capsys.readouterr().out
    assert json.loads(said[said.index("{") :]) == store.entry("checkpoint", FP).record


def test_export_copies_an_artifact_out_whole_and_writable(store, tmp_path):
    path = publish(store)
    run(store, "export", FP[:4], str(tmp_path / "out"), "--bare")
    assert tree(tmp_path / "out") == tree(path)
    assert all(p.stat().st_mode & stat.S_IWUSR for p in (tmp_path / "out", *(tmp_path / "out").rglob("*")))


def test_export_leaves_the_artifact_read_only(store, tmp_path):
    path = publish(store)
    run(store, "export", FP[:4], str(tmp_path / "out"), "--bare")
    assert not any(p.stat().st_mode & stat.S_IWUSR for p in (path, *path.rglob("*")))


def test_export_does_not_write_into_a_directory_that_exists(store, tmp_path):
    publish(store)
    with pytest.raises(StoreError, match=re.escape(str(tmp_path))):
        run(store, "export", FP[:4], str(tmp_path), "--bare")


def test_export_refuses_what_was_changed(store, tmp_path):
    change(publish(store) / "deep" / "b.bin", b"1")
    with pytest.raises(StoreError, match=r"deep/b\.bin"):
        run(store, "export", FP[:4], str(tmp_path / "out"), "--bare")


def test_a_store_that_is_not_there_is_said(store):
    with pytest.raises(StoreError, match=re.escape(str(store.root))) as caught:
        run(store, "ls")
    assert HOUSE_STYLE.fullmatch(str(caught.value))


# disks


def fill(disk):
    """Leave no byte free."""

    def write():
        with (disk / "filler").open("wb", buffering=0) as f:
            while f.write(b"0" * 4096):
                pass

    with pytest.raises(OSError, match="No space left"):
        write()


def test_a_full_disk_is_said_in_a_line(small_disk):
    store = Store(small_disk / "store")
    with pytest.raises(StoreError) as caught:
        publish(store, big=bytes(2 << 20))
    assert HOUSE_STYLE.fullmatch(str(caught.value))
    assert "full" in str(caught.value)
    assert str(store.root) in str(caught.value)


def test_a_full_disk_keeps_what_was_in_the_store_and_nothing_of_the_failed(small_disk):
    store = Store(small_disk / "store")
    publish(store)
    before = tree(store.root)
    with pytest.raises(StoreError):
        publish(store, OTHER, big=bytes(2 << 20))
    assert tree(store.root) == before
    assert store.entry("checkpoint", FP).problems() == []


def test_a_disk_that_is_full_when_the_record_is_written_leaves_nothing(small_disk):
    store = Store(small_disk / "store")

    def build():
        with store.publish("checkpoint", FP, IDENTITIES[FP], {}) as out:
            (out / "a").write_text("a")
            fill(small_disk)

    with pytest.raises(StoreError):
        build()
    assert store.entry("checkpoint", FP) is None
    assert leftovers(store) == []


def test_a_disk_that_is_full_for_a_reference_is_said(small_disk, tmp_path):
    store = Store(small_disk / "store")
    publish(store)
    fill(small_disk)
    with pytest.raises(StoreError) as caught:
        store.refer(tmp_path, [("checkpoint", FP)])
    assert HOUSE_STYLE.fullmatch(str(caught.value))


def test_a_full_disk_is_freed_by_gc_as_its_message_says(small_disk, tmp_path):
    store = Store(small_disk / "store")
    publish(store)
    fill(small_disk)
    with pytest.raises(StoreError, match="gc"):
        store.refer(tmp_path, [("checkpoint", FP)])
    run(store, "gc", "--yes")
    assert store.entries() == []


def test_a_library_that_only_passes_on_the_text_of_a_full_disk_is_understood(store):
    with pytest.raises(StoreError, match="full"), store.publish("checkpoint", FP, IDENTITIES[FP], {}):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.fixture
def read_only(small_disk):
    """A store with one artifact, on a file system that was mounted read-only after."""
    store = Store(small_disk / "store")
    publish(store)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    return store


def locked(store, _):
    with store.lock(OTHER):
        pass


WRITES = {
    "open": lambda store, _: store.open(),
    "publish": lambda store, _: publish(store, OTHER),
    "lock": locked,
    "refer": lambda store, run: store.refer(run, []),
    "remove": lambda store, _: store.remove(store.root / "checkpoint" / FP),
}


@pytest.mark.parametrize("use", ["publish", "lock", "refer", "remove"])
def test_a_read_only_store_is_said_in_a_line(read_only, tmp_path, use):
    with pytest.raises(StoreError) as caught:
        WRITES[use](read_only, tmp_path)
    assert HOUSE_STYLE.fullmatch(str(caught.value))
    assert "read-only" in str(caught.value)


def test_a_finished_run_goes_through_on_a_read_only_store(small_disk, tmp_path, monkeypatch):
    made, store = {"stage": "quantize", "inputs": {}}, Store(small_disk / "store")
    step = Step("one", Stage("one", lambda ctx: None, 1, None, (), (), Checkpoint), {}, frozenset(), {}, made)
    plan = Plan([step], [step], [])
    run_plan(plan, Choices(seed=0), store, Sources(store.sources))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert store.trouble() is not None
    done = run_plan(plan, Choices(seed=0), store, Sources(store.sources))
    assert [d.state for d in done] == ["cached"]
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", "x", [], "model: {}", plan, done, store)
    assert (tmp_path / "run" / "one" / RECORD).is_file()


def test_a_read_only_store_can_still_be_read(read_only, tmp_path):
    assert read_only.entry("checkpoint", FP).problems() == []
    run(read_only, "export", FP[:4], str(tmp_path / "out"), "--bare")
    assert tree(tmp_path / "out") == tree(read_only.root / "checkpoint" / FP)


def test_an_export_to_where_one_cannot_write_is_said_in_a_line(read_only, tmp_path):
    publish(Store(tmp_path / "store"))
    with pytest.raises(StoreError) as caught:
        run(Store(tmp_path / "store"), "export", FP[:4], str(read_only.root.parent / "out"), "--bare")
    assert str(read_only.root.parent / "out") in str(caught.value)


def test_sources_can_be_hashed_though_their_memory_cannot_be_written(read_only, tmp_path, pipeline_directory):
    model = Source(str(pipeline_directory(tmp_path / "model")))
    expected = Sources(tmp_path / "memory.json").digest(model)
    assert Sources(read_only.root / "sources.json").digest(model) == expected


@pytest.mark.parametrize("use", ["open", "publish", "lock", "refer"])
def test_a_store_that_is_a_file_is_said_in_a_line(tmp_path, use):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError) as caught:
        WRITES[use](Store(tmp_path / "file"), tmp_path)
    assert HOUSE_STYLE.fullmatch(str(caught.value))
    assert str(tmp_path / "file") in str(caught.value)


def test_a_file_elsewhere_that_a_stage_may_not_read_is_not_blamed_on_the_store(store, tmp_path):
    denied = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "model.safetensors"))
    with pytest.raises(PermissionError, match=r"model\.safetensors"), store.publish("checkpoint", FP, IDENTITIES[FP], {}):
        raise denied


def test_an_error_meant_for_the_user_passes_through_whatever_it_says(store):
    with pytest.raises(PlanError, match="the hub"), store.publish("checkpoint", FP, IDENTITIES[FP], {}):
        raise PlanError("source: the hub did not give it: No space left on device (got 'org/name'); check HF_HOME")


def test_an_artifact_reads_its_own_json(store):
    entry = Artifact(publish(store), FP)
    assert entry.json("a.json") == {"a": 1}
