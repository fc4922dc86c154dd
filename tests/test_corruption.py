"""Whatever is done to a store's files by hand or by a disk is found, by use and by `verify` alike, or harmless."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from diffopt.cli.store import command
from diffopt.errors import StoreError
from diffopt.store.entry import RECORD
from diffopt.store.fingerprint import fingerprint
from diffopt.store.store import Store

SEED = int(os.environ.get("DIFFOPT_SEED", "0"))
MANY = int(os.environ.get("DIFFOPT_CORRUPTIONS", "38"))
"""300 by `make soak`."""


def filled(root: Path) -> Store:
    """Checkpoints, and metrics made of each."""
    store = Store(root)
    for i in range(3):
        identity: dict[str, Any] = {"stage": "quantize", "config": {"format": {"number": i}}, "inputs": {}}
        with store.publish("checkpoint", fingerprint(identity), identity, {"seconds": 1.0}) as out:
            (out / "weights.safetensors").write_bytes(random.Random(i).randbytes(100))
            (out / "checkpoint.json").write_text(json.dumps({"number": i}))
        scored = {"stage": "score", "config": {}, "inputs": {"checkpoint": fingerprint(identity)}}
        with store.publish("metrics", fingerprint(scored), scored, {"seconds": 1.0}) as out:
            (out / "difference").mkdir()
            (out / "difference" / "000.png").write_bytes(random.Random(10 + i).randbytes(50))
            (out / "metrics.json").write_text(json.dumps({"psnr": 30.5 + i}))
    return store


def content(store: Store) -> dict[str, bytes]:
    return {
        str(p.relative_to(store.root)): p.read_bytes()
        for e in store.entries()
        for p in e.path.rglob("*")
        if p.is_file() and p.name != RECORD
    }


def picked(store: Store, draw: random.Random) -> Path:
    return draw.choice(store.entries()).path


def a_file(store: Store, draw: random.Random) -> Path:
    files = [p for p in sorted(picked(store, draw).rglob("*")) if p.is_file()]
    return draw.choice(files)


def record_of(store: Store, draw: random.Random, change: Callable[[dict[str, Any]], Any]) -> None:
    path = picked(store, draw) / RECORD
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def flip(store: Store, draw: random.Random) -> None:
    path = a_file(store, draw)
    found = bytearray(path.read_bytes())
    found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
    path.write_bytes(found)


def cut(store: Store, draw: random.Random) -> None:
    path = a_file(store, draw)
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def lose(store: Store, draw: random.Random) -> None:
    a_file(store, draw).unlink()


def lose_all(store: Store, draw: random.Random) -> None:
    shutil.rmtree(picked(store, draw))


def add(store: Store, draw: random.Random) -> None:
    (picked(store, draw) / "model.safetensors.index.json").write_text("{}")


def swap(store: Store, draw: random.Random) -> None:
    """Two artifacts of a kind."""
    one, other = draw.sample([e.path for e in store.entries(draw.choice(["checkpoint", "metrics"]))], 2)
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def link(store: Store, draw: random.Random) -> None:
    one, other = draw.sample([e.path for e in store.entries("checkpoint")], 2)
    shutil.rmtree(one)
    one.symlink_to(other)


def link_of_a_file(store: Store, draw: random.Random) -> None:
    path = a_file(store, draw)
    copy = store.root.parent / "copy"
    path.rename(copy)
    path.symlink_to(copy)


def pipe(store: Store, draw: random.Random) -> None:
    path = a_file(store, draw)
    path.unlink()
    os.mkfifo(path)


def relabel(store: Store, draw: random.Random) -> None:
    record_of(store, draw, lambda r: r["identity"]["config"].update({"format": {"number": draw.random()}}))


def other_inputs(store: Store, draw: random.Random) -> None:
    record_of(store, draw, lambda r: r["identity"].update(inputs={"checkpoint": "0" * 16}))


def other_kind(store: Store, draw: random.Random) -> None:
    record_of(store, draw, lambda r: r.update(kind="onnx"))


def other_size(store: Store, draw: random.Random) -> None:
    record_of(store, draw, lambda r: draw.choice([*r["files"].values()]).update(size=draw.randrange(9)))


def odd(store: Store, draw: random.Random) -> None:
    """A field of another type, or none."""
    values: list[Any] = [None, [], "x", -1, float("inf"), {"../../x": {"size": 0, "sha256": "0" * 64}}, "\x1b[31m"]
    key = draw.choice(["kind", "identity", "files"])
    record_of(store, draw, lambda r: r.update({key: draw.choice(values)}))


def lacking(store: Store, draw: random.Random) -> None:
    record_of(store, draw, lambda r: r.pop(draw.choice(["kind", "identity", "provenance", "files"])))


def nested(store: Store, draw: random.Random) -> None:
    (picked(store, draw) / RECORD).write_text("[" * 100_000)


def forbidden(store: Store, draw: random.Random) -> None:
    a_file(store, draw).chmod(0)


KINDS = [
    *(flip, flip, cut, cut, lose, lose_all, add, swap, link, link_of_a_file, pipe, relabel, other_inputs),
    *(other_kind, other_size, odd, lacking, nested, forbidden),
]


def writable(store: Store) -> None:
    for path in [store.root, *store.root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def used(store: Store, kind: str, name: str) -> bool:
    """Whether a run takes it; whatever reads it takes all of it."""
    try:
        entry = store.entry(kind, name)
        if entry:
            entry.check_content()
    except StoreError:
        return False
    return entry is not None


@pytest.mark.parametrize("number", range(MANY))
def test_a_corruption_is_found_by_use_and_by_verify_or_harmless(number: int, tmp_path: Path) -> None:
    draw = random.Random(f"{SEED}/{number}")
    store = filled(tmp_path / "store")
    before, names = content(store), [(e.kind, e.fingerprint) for e in store.entries()]
    writable(store)
    how = KINDS[number % len(KINDS)]
    how(store, draw)
    signal.alarm(20)  # a pipe is not waited for
    taken = {x for x in names if used(store, *x)}
    refused = True
    with suppress(StoreError):
        command(["--store", str(store.root), "verify"])
        refused = False
    command(["--store", str(store.root), "verify", "--drop"])
    signal.alarm(0)
    for kind, name in taken:  # what is taken is what was made
        path = store.root / kind / name
        own = {k: v for k, v in before.items() if k.startswith(f"{kind}/{name}/")}
        if path.exists():
            assert {k: (store.root / k).read_bytes() for k in own} == own, how
    there = {x for x in names if os.path.lexists(store.root / x[0] / x[1])}
    if len(taken) < len(names) and how is not lose_all:
        assert refused, how
    assert there <= taken, how  # verify drops all that a run refuses
    assert all(used(store, *x) for x in there)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.json", "[]"),
        ("sources.json", '{"a:1:2": 7}'),
        ("sources.json", '{"a:1:2": "not a hash"}'),
        ("sources.json", "[" * 100_000),
        ("roots/a.json", '{"run": "/x"}'),
        ("roots/a.json", '{"run": 7, "artifacts": []}'),
        ("roots/a.json", '{"run": "/x", "artifacts": [["checkpoint"]]}'),
        ("roots/a.json", '{"run": "/x", "artifacts": {"a": 1}}'),
    ],
)
def test_a_file_about_artifacts_that_follows_no_schema_is_said_and_put_aside(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = filled(tmp_path / "store")
    path = store.root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    for action in ("ls", "gc"):
        command(["--store", str(store.root), action])
    with pytest.raises(StoreError, match=f"got {name}"):
        command(["--store", str(store.root), "verify"])
    assert f"{name}: " in capsys.readouterr().out
    command(["--store", str(store.root), "verify", "--drop"])
    assert not path.exists()
    assert [p.read_text() for p in (store.root / "quarantine").iterdir()] == [text]
    command(["--store", str(store.root), "verify"])


def test_a_link_is_removed_and_what_it_leads_to_stays_as_it_was(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    (outside / "precious").write_text("x")
    (outside / "precious").chmod(0o400)
    (store.root / "tmp" / f"{'0' * 16}-scratch").symlink_to(outside)
    (store.root / "checkpoint" / ("1" * 16)).symlink_to(outside)
    victim = store.entries("checkpoint")[0].path
    victim.rename(tmp_path / "moved")
    victim.symlink_to(tmp_path / "moved")
    modes = {p: p.stat().st_mode for p in (outside, outside / "precious", tmp_path / "moved")}
    command(["--store", str(store.root), "verify", "--drop"])
    command(["--store", str(store.root), "gc", "--yes"])
    assert {p: p.stat().st_mode for p in modes} == modes
    assert not [p for p in store.root.rglob("*") if p.is_symlink()]


def test_a_lock_that_is_a_link_leaves_its_target_as_it_was(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    target = tmp_path / "target"
    target.write_text("mine")
    (store.root / "tmp" / f"{'0' * 16}.lock").symlink_to(target)
    with pytest.raises(StoreError, match="a lock is a link"), store.lock("0" * 16):
        pass
    assert target.read_text() == "mine"
