"""What a team needs of a store: pins, an age, no clean-up under a run, and artifacts in an object storage, which is moto's
server on this machine."""

import logging
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_store import FP, IDENTITIES, OTHER, publish, run, tree

from diffopt.artifact import Checkpoint
from diffopt.errors import StoreError
from diffopt.files.run import RunFile, RunStep
from diffopt.jobs.plan import Plan, Step
from diffopt.jobs.runner import missing, run_plan
from diffopt.stage import Stage
from diffopt.store import arrival, live, remote
from diffopt.store.fingerprint import fingerprint
from diffopt.store.garbage import garbage
from diffopt.store.remote import Remote
from diffopt.store.source import Sources
from diffopt.store.store import Store
from diffopt.view import Choices

fork = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# Pins, and an age.


def test_a_pinned_artifact_is_kept_with_what_it_was_made_from_until_it_is_unpinned(store: Store, capsys: Any) -> None:
    publish(store)
    publish(store, OTHER)
    made = {"stage": "export", "inputs": {"checkpoint": FP}}
    name = fingerprint(made)
    with store.publish("onnx", name, made, {}):
        pass
    run(store, "pin", name[:6])
    capsys.readouterr()
    run(store, "ls")
    marked = {line.split()[1]: line.endswith("  pinned") for line in capsys.readouterr().out.splitlines()[1:-1]}
    assert marked == {FP: True, OTHER: False, name: True}
    run(store, "gc", "--yes")
    assert {e.fingerprint for e in store.entries()} == {FP, name}
    run(store, "unpin", name[:6])
    run(store, "gc", "--yes")
    assert store.entries() == []
    with pytest.raises(StoreError, match=r"store unpin: is not pinned \(got '.*'\); there are none"):
        run(store, "unpin", name[:6])


def test_a_pinned_run_is_kept_when_its_directory_is_gone(store: Store, tmp_path: Path) -> None:
    publish(store)
    publish(store, OTHER)
    content = RunFile("x", [], "model: {}", [], [], (RunStep("s", "checkpoint", FP, "made", 1.0, []),))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(content.to_json())
    run(store, "pin", str(tmp_path / "run"))
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "run").rmdir()
    run(store, "gc", "--yes")
    assert [e.fingerprint for e in store.entries()] == [FP]
    run(store, "unpin", str(tmp_path / "run"))
    assert [e.fingerprint for e in garbage(store)[0]] == [FP]


def test_gc_removes_nothing_while_a_pin_cannot_be_read(store: Store) -> None:
    publish(store)
    run(store, "pin", FP[:6])
    (pin,) = (store.root / "pins").iterdir()
    pin.write_text('{"run": "/so')
    with pytest.raises(StoreError, match="a pin cannot be read"):
        run(store, "gc", "--yes")
    run(store, "verify", "--drop")
    assert not [*(store.root / "pins").iterdir()]


def test_gc_with_an_age_removes_only_what_is_older(store: Store) -> None:
    publish(store)
    old = publish(store, OTHER)
    os.utime(old / "record.json", (time.time() - 31 * 86400,) * 2)
    run(store, "gc", "--older-than", "30d", "--yes")
    assert [e.fingerprint for e in store.entries()] == [FP]
    with pytest.raises(StoreError, match=r"--older-than is no age \(got '30'\); write hours, days or weeks, as 12h"):
        run(store, "gc", "--older-than", "30")


def test_gc_removes_timings_of_a_builder_of_which_no_plan_is_left(store: Store) -> None:
    made = {"stage": "build", "environment": {"tensorrt": {"flavour": "tensorrt", "version": "9.1"}}}
    with store.publish("engine", fingerprint(made), made, {}):
        pass
    store.timings.mkdir()
    for name in ("tensorrt-9.1-H100.cache", "tensorrt-8.6-A100.cache"):
        (store.timings / name).touch()
    store.pin("engine", [("engine", fingerprint(made))])
    assert [p.name for p in garbage(store)[1]] == ["tensorrt-8.6-A100.cache"]
    store.unpin("engine")
    assert [p.name for p in garbage(store)[1]] == ["tensorrt-8.6-A100.cache", "tensorrt-9.1-H100.cache"]


# While a run is live.


def hold(store: Store, directory: Path, began: Any, end: Any) -> None:
    with live.running(store, directory):
        began.set()
        end.wait()


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_gc_is_refused_while_a_run_is_live_and_names_it(shared: bool, store: Store, tmp_path: Path) -> None:
    publish(store)
    run(store, "gc")
    with live.alone(store):
        pass
    began, end = fork.Event(), fork.Event()
    used = Store(tmp_path / "mine", [store]) if shared else store
    process = fork.Process(target=hold, args=(used, tmp_path / "run", began, end))
    process.start()
    began.wait()
    who = "one that reads it from a store of its own" if shared else f"{tmp_path / 'run'}, process {process.pid} on "
    with pytest.raises(StoreError, match=rf"store gc: a run is live \(got {re.escape(who)}.*\); wait for its end"):
        run(store, "gc", "--yes")
    assert store.entries()
    run(store, "gc")  # to look harms nothing
    process.kill()
    process.join()
    run(store, "gc", "--yes")
    assert store.entries() == []
    assert not [*(store.root / "live").glob("*.json")]


# An object storage.


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    found = moto.ThreadedMotoServer(port=0, verbose=False)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def bucket(server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket `team`; `bucket.stop()` takes the network away, `bucket.start()` gives it back."""
    import s3fs

    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_MAX_ATTEMPTS", "1"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("team")
    server._port = port
    yield system
    system.rm("team", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


def exported(store: Store) -> str:
    publish(store)
    run(store, "export", FP[:6], "s3://team/store/")
    return f"s3://team/store/checkpoint/{FP}"


def test_what_was_exported_to_a_bucket_is_imported_as_it_was(store: Store, bucket: Any, tmp_path: Path, capsys: Any) -> None:
    url = exported(store)
    names = sorted(name.removeprefix(f"team/store/checkpoint/{FP}/") for name in bucket.find("team"))
    assert names == ["a.json", "deep/b.bin", "record.json"]
    run(store, "export", FP[:6], "s3://team/store/")
    assert "is there already" in capsys.readouterr().out
    other = Store(tmp_path / "other")
    run(other, "import", url)
    assert tree(other.root / "checkpoint") == tree(store.root / "checkpoint")
    assert other.entry("checkpoint", FP).problems() == []
    publish(store, OTHER)
    with pytest.raises(StoreError, match="another artifact is there"):
        run(store, "export", OTHER[:6], url)


def one_step(ran: list[str]) -> Plan:
    step = Step(
        "one",
        Stage("one", lambda ctx: ran.append("ran"), 1, None, (), (), Checkpoint),
        {},
        frozenset(),
        {},
        IDENTITIES[FP],
    )
    return Plan([step], [step], [])


def test_a_run_takes_what_a_bucket_has_and_makes_the_rest(store: Store, bucket: Any, tmp_path: Path) -> None:
    exported(store)
    ran: list[str] = []
    mine = Store.at(f"{tmp_path / 'mine'}:s3://team/store")
    plan = one_step(ran)
    assert missing(plan, mine) == set()
    assert mine.entries() == []  # to plan downloads nothing
    assert [d.state for d in run_plan(plan, Choices(seed=0), mine, Sources(mine.sources))] == ["cached"]
    assert mine.entry("checkpoint", FP).problems() == []
    empty = Store.at(f"{tmp_path / 'more'}:s3://team/elsewhere")
    assert [d.state for d in run_plan(plan, Choices(seed=0), empty, Sources(empty.sources))] == ["made"]
    assert ran == ["ran"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b"{} other", "the object has other bytes than when it was made"),
        ("a.json", b"", "the object has 0 bytes, but was made with 8"),
        ("a.json", None, "there is no such object"),
        ("record.json", b"{", "the object is no record"),
    ],
)
def test_what_was_changed_in_a_bucket_is_refused_and_leaves_nothing(
    name: str, content: bytes | None, said: str, store: Store, bucket: Any, tmp_path: Path
) -> None:
    url = exported(store)
    path = f"{url.removeprefix('s3://')}/{name}"
    bucket.pipe_file(path, content) if content is not None else bucket.rm_file(path)
    other = Store(tmp_path / "other")
    with pytest.raises(StoreError, match=rf"store: {said}.* \(got {re.escape(url)}/{re.escape(name)}\)"):
        run(other, "import", url)
    assert other.entries() == []


def test_a_swapped_artifact_of_a_bucket_is_refused(store: Store, bucket: Any, tmp_path: Path) -> None:
    url = exported(store)
    bucket.cp(url.removeprefix("s3://"), f"team/store/checkpoint/{OTHER}", recursive=True)
    with pytest.raises(StoreError, match=f"the object is that of checkpoint/{FP}"):
        Store.at(f"{tmp_path / 'mine'}:s3://team/store").has("checkpoint", OTHER)


@pytest.mark.parametrize("way", ["import", "export"])
def test_a_broken_transfer_names_the_object_and_goes_on_when_asked_again(
    way: str,
    store: Store,
    bucket: Any,
    server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "werkzeug")
    url = f"s3://team/store/checkpoint/{FP}"
    publish(store) if way == "export" else exported(store)
    other = Store(tmp_path / "other")
    method = "send" if way == "export" else "fetch"
    whole, asked, breaks = getattr(Remote, method), [], [True]

    def transfer(self: Remote, *given: Any) -> None:
        name = next(x for x in given if isinstance(x, str))
        asked.append(name)
        if name == "deep/b.bin" and breaks:
            breaks.clear()
            server.stop()
        whole(self, *given)

    monkeypatch.setattr(remote.Remote, method, transfer)
    command = (store, "export", FP[:6], url) if way == "export" else (other, "import", url)
    with pytest.raises(
        StoreError, match=rf"store: the transfer broke \(.*\) \(got {url}/deep/b\.bin\); the same command goes on"
    ):
        run(*command)
    assert other.entries() == []
    server.start()
    assert not bucket.exists(f"{url}/record.json") or way == "import"
    asked.clear()
    caplog.clear()
    run(*command)
    if way == "export":
        assert asked == ["deep/b.bin", "record.json"]
        assert not bucket.exists(f"{url}/.sent.json")
        run(other, "import", url)
    else:
        assert " GET /team" in caplog.text.replace('"', " ")
        assert "/a.json" not in caplog.text
    assert other.entry("checkpoint", FP).problems() == []


def test_a_large_object_goes_on_in_its_middle(
    store: Store, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = exported(store)
    other = Store(tmp_path / "other")
    half = other.root / "tmp" / f"{FP}{arrival.ARRIVING}" / "deep" / "b.bin"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"123")
    asked = []
    system = Remote(url)._opened[0]
    read = system.cat_file

    def spied(path: str, **part: Any) -> bytes:
        asked.append((path.rpartition("/")[2], part["start"]))
        return read(path, **part)

    monkeypatch.setattr(system, "cat_file", spied)
    run(other, "import", url)
    assert ("b.bin", 3) in asked
    assert other.entry("checkpoint", FP).problems() == []


def test_what_is_no_storage_is_a_line(store: Store, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"there is no such bucket \(got 's3://nowhere/x'\)"):
        Store.at(f"{tmp_path}:s3://nowhere/x").has("checkpoint", FP)
    with pytest.raises(StoreError, match=r"an object storage is only read from \(got 's3://team'\); write DIRECTORY:s3://team"):
        Store.at("s3://team")
    with pytest.raises(StoreError, match=r"cannot be opened .*give s3://BUCKET/PATH"):
        run(store, "import", "what://is/this")
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(StoreError, match=r"gs:// needs the package gcsfs \(got 'gs://b/x'\); pip install 'diffopt\[gs\]'"):
        run(store, "import", "gs://b/x")
