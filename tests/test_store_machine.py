"""A store under any sequence of what is done to it, beside a model of it: what it gives is what was made, or nothing."""

import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from fuzzing import SEED, limits
from hypothesis import seed
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule, run_state_machine_as_test

from diffopt.cli.store import command
from diffopt.errors import StoreError
from diffopt.store.arrival import take
from diffopt.store.entry import RECORD
from diffopt.store.fingerprint import fingerprint
from diffopt.store.store import Store

KINDS = st.sampled_from(["pipeline", "checkpoint"])
NUMBERS = st.integers(0, 5)


class Killed(BaseException):
    """As SIGKILL ends a process: nothing is cleaned up after it."""


def identity(number: int) -> dict[str, Any]:
    return {"stage": "quantize", "config": {"format": {"number": number}}, "inputs": {}}


def bytes_of(number: int) -> dict[str, bytes]:
    return {"weights.safetensors": bytes([number]) * 40, "about.json": json.dumps({"number": number}).encode()}


class StoreMachine(RuleBasedStateMachine):
    exported = Bundle("exported")

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="diffopt-machine-"))
        self.store = Store(self.root / "store")
        self.sound: set[tuple[str, int]] = set()
        self.bad: set[tuple[str, int]] = set()
        self.runs: dict[str, set[tuple[str, int]]] = {}

    def path(self, kind: str, number: int) -> Path:
        return self.store.root / kind / fingerprint(identity(number))

    def made(self, kind: str, number: int, killed: bool = False) -> None:
        with self.store.publish(kind, fingerprint(identity(number)), identity(number), {"seconds": 1.0}) as out:
            for name, content in bytes_of(number).items():
                (out / name).write_bytes(content)
            if killed:
                raise Killed

    @rule(kind=KINDS, numbers=st.sets(NUMBERS, min_size=1, max_size=4))
    def publish(self, kind: str, numbers: set[int]) -> None:
        """As a run does: what is there and sound is taken."""
        for number in sorted(numbers):
            if (kind, number) not in self.bad | self.sound:
                with self.store.lock(fingerprint(identity(number))):
                    self.made(kind, number)
                self.sound.add((kind, number))

    @rule(kind=KINDS, number=NUMBERS)
    def fail(self, kind: str, number: int) -> None:
        with suppress(Killed):
            self.made(kind, number, killed=True)
        left = [p for p in (self.store.root / "tmp").glob(f"{fingerprint(identity(number))}-*") if not p.name.endswith("-half")]
        assert not left

    @rule(kind=KINDS, number=NUMBERS, placed=st.booleans())
    def kill(self, kind: str, number: int, placed: bool) -> None:
        """In the middle of writing; or a hand copied the files without their record."""
        if placed and (kind, number) in self.bad | self.sound:
            return
        where = self.path(kind, number) if placed else self.store.root / "tmp" / f"{fingerprint(identity(number))}-half"
        where.mkdir(parents=True, exist_ok=True)
        (where / "about.json").write_bytes(b"{")

    @rule(kind=KINDS, number=NUMBERS, how=st.sampled_from(["flip", "cut", "lose", "add", "record", "link"]))
    def corrupt(self, kind: str, number: int, how: str) -> None:
        if (kind, number) not in self.sound:
            return
        path = self.path(kind, number)
        path.chmod(0o755)
        file = path / (RECORD if how == "record" else "weights.safetensors")
        content = file.read_bytes()
        file.chmod(0o644)
        if how == "add":
            (path / "more").write_bytes(b"")
        elif how in ("lose", "link"):
            file.unlink()
            if how == "link":
                file.symlink_to("about.json")
        else:
            other = {"flip": bytes([content[0] ^ 1]) + content[1:], "cut": content[:-1], "record": content[: len(content) // 2]}
            file.write_bytes(other[how])
        self.sound.discard((kind, number))
        self.bad.add((kind, number))

    @rule(run=st.sampled_from("ab"), which=st.sets(st.integers(0, 11), min_size=1, max_size=3))
    def refer(self, run: str, which: set[int]) -> None:
        there = sorted(self.sound)
        artifacts = {there[i % len(there)] for i in which if there}
        (self.root / run).mkdir(exist_ok=True)
        self.store.refer(self.root / run, [(kind, fingerprint(identity(n))) for kind, n in artifacts])
        self.runs[run] = artifacts

    @rule(run=st.sampled_from("ab"))
    def forget(self, run: str) -> None:
        shutil.rmtree(self.root / run, ignore_errors=True)
        self.runs.pop(run, None)

    @rule()
    def gc(self) -> None:
        if any(e.problems() for e in self.store.entries()):  # whose size is not known
            self.verify(True)
        if self.store.root.is_dir():
            command(["--store", str(self.store.root), "gc", "--yes"])
        kept = {pair for artifacts in self.runs.values() for pair in artifacts}
        self.sound &= kept
        assert not list((self.store.root / "tmp").glob("*-half"))

    @rule(drop=st.booleans())
    def verify(self, drop: bool) -> None:
        if not self.store.root.is_dir():
            return
        found = {(e.kind, e.fingerprint) for e in self.store.entries() if e.problems()}
        assert found == {(kind, fingerprint(identity(n))) for kind, n in self.bad}
        refused = False
        try:
            command(["--store", str(self.store.root), "verify", *(["--drop"] if drop else [])])
        except StoreError:
            refused = True
        assert refused == (not drop and bool(found or self.store.unfinished()))
        if drop:
            self.bad.clear()
            assert not self.store.unfinished()

    @rule(target=exported, kind=KINDS, number=NUMBERS)
    def export(self, kind: str, number: int) -> tuple[str, int, Path] | None:
        if (kind, number) not in self.sound:
            return None
        out = Path(tempfile.mkdtemp(dir=self.root)) / "exported"
        shutil.copytree(self.path(kind, number), out)
        return kind, number, out

    @rule(given=consumes(exported), broken=st.booleans())
    def imported(self, given: tuple[str, int, Path] | None, broken: bool) -> None:
        if given is None:
            return
        kind, number, directory = given
        if broken:
            file = directory / "weights.safetensors"
            directory.chmod(0o755)
            file.chmod(0o644)
            file.write_bytes(b"other")
        try:
            taken = take(self.store, directory)
        except StoreError:
            assert broken or (kind, number) in self.bad
            return
        assert not broken or (kind, number) in self.sound
        assert (taken.kind, taken.fingerprint) == (kind, fingerprint(identity(number)))
        self.sound.add((kind, number))

    @invariant()
    def gives_what_was_made_or_nothing(self) -> None:
        for kind in ("pipeline", "checkpoint"):
            for number in range(6):
                key = fingerprint(identity(number))
                try:
                    entry = self.store.entry(kind, key)
                    if entry:
                        entry.check_content()
                except StoreError:
                    assert (kind, number) in self.bad
                    continue
                assert ((kind, number) in self.sound) == (entry is not None)
                if entry:
                    assert {n: entry.content(n) for n in entry.record["files"]} == bytes_of(number)

    def teardown(self) -> None:
        if hasattr(self, "root"):
            for here, below, _ in os.walk(self.root):
                for name in below:
                    (Path(here) / name).chmod(0o755)
            shutil.rmtree(self.root)


def test_a_store_gives_what_was_made_or_nothing_whatever_is_done_to_it(capsys: Any) -> None:
    run_state_machine_as_test(seed(SEED)(StoreMachine), settings=limits(40, stateful_step_count=25))
    assert capsys.readouterr()
