"""One finished artifact, and whether it is as it was made."""

import builtins
import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffopt.errors import StoreError
from diffopt.store import schemas
from diffopt.store.files import content, sha256
from diffopt.store.fingerprint import fingerprint

RECORD = "record.json"
SMALL = 1 << 20
"""Bytes of a JSON file that is hashed whenever its artifact is used: what a run prints and a page shows is in such files."""
OTHER = "has other bytes than when it was made"


@dataclass(frozen=True)
class Entry:
    """One finished artifact."""

    kind: str
    fingerprint: str
    path: Path

    @cached_property
    def record(self) -> dict[str, Any]:
        """`identity`, `provenance` and the manifest `files`: {name: {size, sha256}}.

        Raises StoreError for one that is none, and for that of another artifact: the name is the identity's hash.
        """
        if fault := self._misplaced():
            raise self._changed("it", fault)
        try:
            found: dict[str, Any] = schemas.read(self.path / RECORD, schemas.Record)
            named = found["kind"], fingerprint(found["identity"])
        except OSError as e:
            raise self._changed(RECORD, f"cannot be read ({(e.strerror or str(e)).lower()})") from None
        except (ValueError, TypeError) as e:
            raise self._changed(RECORD, f"is no record ({e})") from None
        if named != (self.kind, self.fingerprint):
            raise self._changed(RECORD, f"is that of {named[0]}/{named[1]}")
        return found

    def _misplaced(self) -> str | None:
        """A link would give one artifact another's name, or reach out of the store."""
        if self.path.is_symlink() or self.path.parent.is_symlink():
            return "is a link, and no artifact"
        return None

    @property
    def bytes(self) -> int:
        return sum(f["size"] for f in self.record["files"].values())

    def check(self) -> None:
        """Raises StoreError where a file is missing, was added, or has another size than when it was made, and for a small
        JSON file whose bytes are others."""
        for name, what in self._faults(lambda name, size: name.endswith(".json") and size <= SMALL):
            raise self._changed(name, what)

    def check_content(self) -> None:
        """The same of all bytes: before something is made from them."""
        for name, what in self._faults(lambda *_: True):
            raise self._changed(name, what)

    def problems(self) -> list[str]:
        """What differs from when it was made, by sha256 of every file; empty when sound."""
        try:
            return [f"{name} {what}" for name, what in self._faults(lambda *_: True)]
        except StoreError as e:
            return [str(e).partition(": ")[2].partition(": ")[2].partition("; ")[0]]

    def _faults(self, hashed: Callable[[str, int], bool]) -> Iterator[tuple[str, str]]:
        """Names of files and what is wrong with each; those are hashed for which `hashed(name, size)`.

        Raises StoreError for a record that is none.
        """
        made = self.record["files"]
        there = {str(p.relative_to(self.path)) for p in self.path.rglob("*") if p.is_symlink() or not p.is_dir()}
        for name, about in made.items():
            path = self.path / name
            if name not in there:
                yield name, "is missing"
            elif path.is_symlink() or not path.is_file():
                yield name, "is no plain file"
            elif (size := path.stat().st_size) != about["size"]:
                yield name, f"has {size} bytes, but was made with {about['size']}"
            elif hashed(name, size) and (trouble := _differs(path, about["sha256"])):
                yield name, trouble
        yield from ((name, "was added") for name in sorted(there - set(made) - {RECORD}))

    def content(self, name: str) -> builtins.bytes:
        """A file's bytes. Raises StoreError where they are not those that were made."""
        try:
            found = content(self.path / name)
        except OSError as e:
            raise self._changed(name, f"cannot be read ({(e.strerror or str(e)).lower()})") from None
        about = self.record["files"].get(name)
        if about is None or (len(found), hashlib.sha256(found).hexdigest()) != (about["size"], about["sha256"]):
            raise self.changed(name)
        return found

    def changed(self, name: str) -> StoreError:
        """Of a file whose bytes are not those that were made."""
        return self._changed(name, OTHER)

    @property
    def inputs(self) -> set[str]:
        """Fingerprints of the artifacts that it was made from."""
        given = self.record["identity"].get("inputs", {}).values()
        return {fp for value in given for fp in (value if isinstance(value, list) else [value]) if fp}

    def _changed(self, name: str, what: str) -> StoreError:
        return StoreError(
            f"store: {self.kind}/{self.fingerprint}: {name} {what}; "
            "`diffopt store verify --drop` removes what was changed by hand, the next run makes it again"
        )


@dataclass(frozen=True)
class Exported(Entry):
    """One that lies elsewhere, perhaps with files that were added."""

    def _misplaced(self) -> str | None:
        return None

    def copy(self, name: str, to: Path) -> None:
        """Raises StoreError where the copy's bytes are not those that were made."""
        try:
            if not (self.path / name).is_file() or (self.path / name).is_symlink():
                raise self._changed(name, "is no plain file")
            shutil.copyfile(self.path / name, to)
        except FileNotFoundError:
            raise self._changed(name, "is missing") from None
        if trouble := _differs(to, self.record["files"][name]["sha256"]):
            raise self._changed(name, trouble)

    def _changed(self, name: str, what: str) -> StoreError:
        return StoreError(f"store import: {name} {what} (got {str(self.path)!r}); export it again")


def exported(directory: Path) -> Exported:
    """Of a directory that `diffopt store export` has written. Raises StoreError for another."""
    try:
        record = schemas.read(directory / RECORD, schemas.Record)
        return Exported(record["kind"], fingerprint(record["identity"]), directory)
    except (OSError, ValueError, TypeError) as e:
        raise StoreError(
            f"store import: has no {RECORD} that can be read ({e}) (got {str(directory)!r}); give what was exported"
        ) from None


def _differs(path: Path, made: str) -> str | None:
    try:
        return None if sha256(path) == made else OTHER
    except OSError as e:
        return f"cannot be read ({(e.strerror or str(e)).lower()})"
