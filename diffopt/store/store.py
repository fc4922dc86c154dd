"""The artifact store: one read-only directory per fingerprint, published by a rename, record last."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from diffopt.errors import DiffoptError, StoreError
from diffopt.store import schemas
from diffopt.store.entry import RECORD, Entry
from diffopt.store.files import create, flush, flush_all, remove, sha256
from diffopt.store.remote import Remote, is_url

ROOTS = "roots"  # one file per run that refers to artifacts: what `gc` keeps
PINS = "pins"  # one file per run or artifact that a user wants kept
LIVE = "live"  # one file per process that runs: live.py
PLOTS = "plots"  # one file per artifact that a page has plots of: report/plot_cache.py
TIMINGS = "timings"  # of TensorRT's kernels, by its version and the GPU: graph/engine/timing_cache.py
COMPILED = "compiled"  # what torch.compile made for a GPU, by its version of torch: runtimes/compiled.py
QUARANTINE = "quarantine"  # files about artifacts that follow no schema, out of the way
INTERNAL = {"tmp", ROOTS, PINS, LIVE, PLOTS, COMPILED, TIMINGS, QUARANTINE}
KEPT = "-kept"  # ends the name of what a step keeps for its next run, in `tmp`

log = logging.getLogger("diffopt")


class Store:
    """Opening a store writes nothing; the first `publish` makes its directories."""

    def __init__(self, root: Path, shared: Sequence["Store"] = (), remotes: Sequence[Remote] = ()):
        """What is not in it is looked for in the `shared` ones and then in object storages, in which nothing is written."""
        self.root, self.shared, self.remotes = root.absolute(), tuple(shared), tuple(remotes)

    @classmethod
    def at(cls, path: str) -> "Store":
        """The store in a directory as a user names it, or `MINE:TEAM`, of which the first alone is written to. TEAM is a
        directory, or a place in an object storage. Raises StoreError for what can be no path."""
        first, *others = re.split(rf"{os.pathsep}(?!//)", path)
        if is_url(first):
            raise StoreError(f"store: an object storage is only read from (got {path!r}); write DIRECTORY:{first}")
        try:
            own, *shared = (Path(p).expanduser() for p in (first, *(p for p in others if not is_url(p))))
            if lost := [p for p in shared if not p.is_dir()]:
                raise StoreError(f"store: a shared store is no directory (got {str(lost[0])!r}); check DIFFOPT_STORE")
            return cls(own, [cls(p) for p in shared], [Remote(p.rstrip("/")) for p in others if is_url(p)])
        except (RuntimeError, OSError) as e:  # the home of a user that there is not; a working directory that is gone
            raise StoreError(f"store: {said(e)} (got {path!r}); set DIFFOPT_STORE to a directory") from None

    def open(self) -> None:
        """Make its directories. Raises StoreError where that cannot be."""
        try:
            (self.root / "tmp").mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise self._unwritable(e) from None

    def trouble(self) -> StoreError | None:
        """Why it cannot be written; None where it can, as far as looking tells."""
        try:
            self.check()
        except StoreError as e:
            return e
        return None

    def check(self) -> None:
        """Raises StoreError where it cannot be written, as far as looking tells: where something else is in its place, or
        what it lies in is read-only."""
        try:
            if self.root.exists() and not self.root.is_dir():
                raise self._no_directory()
            for folder in (self.disk, self.root / "tmp"):
                if not folder.exists():
                    continue
                if not folder.is_dir():
                    raise self._no_directory()
                if os.statvfs(folder).f_flag & os.ST_RDONLY:
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
                # The kernel's own, as /proc: no blocks to put files in, and not even its owner has leave to.
                kernels = os.statvfs(folder).f_blocks == 0 and not folder.stat().st_mode & 0o222
                if kernels or not os.access(folder, os.W_OK | os.X_OK):
                    raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        except (OSError, ValueError) as e:
            raise self._unwritable(e) from None

    @property
    def disk(self) -> Path:
        """Its directory, or the suggestion one above that there is."""
        return next(p for p in (self.root, *self.root.parents) if os.path.exists(p))

    def _no_directory(self) -> StoreError:
        return StoreError(f"store: is not a directory (got {str(self.root)!r}); set DIFFOPT_STORE to a directory")

    def _unwritable(self, error: OSError | ValueError) -> StoreError:
        """Of an error that is the store's for sure."""
        known = self.disk_trouble(error)
        return known or StoreError(
            f"store: cannot be written ({said(error)}) (got {str(self.root)!r}); "
            "set DIFFOPT_STORE to a directory that you may write"
        )

    def entry(self, kind: str, fingerprint: str) -> Entry | None:
        """The finished artifact, or None. Raises StoreError when it was changed, as far as `Entry.check` looks."""
        path = self.root / kind / fingerprint
        if not os.path.lexists(path / RECORD):
            return next((e for store in self.shared if (e := store.entry(kind, fingerprint))), None)
        found = Entry(kind, fingerprint, path)
        found.check()
        return found

    def has(self, kind: str, fingerprint: str) -> bool:
        """Whether there is the finished artifact, here or in an object storage. Raises StoreError as `entry`."""
        return bool(self.entry(kind, fingerprint) or any(r.record(f"{kind}/{fingerprint}") for r in self.remotes))

    def entries(self, kind: str | None = None) -> list[Entry]:
        """Every finished artifact, by kind and age."""
        if not self.root.is_dir():
            return []
        kinds = [kind] if kind else sorted(p.name for p in self.root.iterdir() if p.is_dir() and p.name not in INTERNAL)
        paths = [p for k in kinds if (self.root / k).is_dir() for p in (self.root / k).iterdir()]
        finished = sorted((p for p in paths if os.path.lexists(p / RECORD)), key=lambda p: (p.parent.name, _age(p), p.name))
        return [Entry(p.parent.name, p.name, p) for p in finished]

    def all_entries(self) -> list[Entry]:
        """Those of the shared stores too, the own ones last."""
        return [*(e for store in reversed(self.shared) for e in store.entries()), *self.entries()]

    def unfinished(self) -> list[Path]:
        """Directories in the place of artifacts that have no record: nothing takes them, the next run makes them again."""
        kinds = [p for p in self.root.iterdir() if p.is_dir() and p.name not in INTERNAL] if self.root.is_dir() else []
        return sorted(p for kind in kinds for p in kind.iterdir() if not os.path.lexists(p / RECORD))

    def find(self, prefix: str) -> Entry:
        """The one artifact whose fingerprint starts with `prefix`, or which is called KIND/FINGERPRINT."""
        found = [
            e for e in self.all_entries() if f"{e.kind}/{e.fingerprint}".startswith(prefix) or e.fingerprint.startswith(prefix)
        ]
        if len(found) != 1:
            what = "no artifact" if not found else f"{len(found)} artifacts"
            raise StoreError(f"store: {what} in {self.root} named so (got {prefix!r}); `diffopt store ls` lists them")
        return found[0]

    @contextmanager
    def publish(self, kind: str, fingerprint: str, identity: dict[str, Any], provenance: dict[str, Any]) -> Iterator[Path]:
        """Yield an empty directory; on success it becomes the artifact, on error it is removed.

        `provenance` is read when the work is done, so that it can say how long it took.
        """
        work: Path | None = None
        try:
            work = self.scratch(fingerprint)
            yield work
            files = {str(p.relative_to(work)): _manifest(p) for p in sorted(work.rglob("*")) if p.is_file()}
            record = {"kind": kind, "identity": identity, "provenance": provenance, "files": files}
            self.place(work, kind, fingerprint, json.dumps(record, indent=1, sort_keys=True))
        except BaseException as e:
            if work:
                remove(work)
            if reason := self.disk_trouble(e):
                raise reason from None
            raise

    def place(self, work: Path, kind: str, fingerprint: str, record: str) -> None:
        """Give what was made its place, whole and on the disk."""
        flush_all(work)
        create(work / RECORD, record)
        for p in work.rglob("*"):
            p.chmod(0o555 if p.is_dir() else 0o444)
        flush(work)
        final = self.root / kind / fingerprint
        final.parent.mkdir(exist_ok=True)
        if os.path.lexists(final):  # it has no record, or this would not run: a hand or a killed clean-up was there
            remove(final)
        os.rename(work, final)
        final.chmod(0o555)
        flush(final.parent)

    def kept(self, fingerprint: str) -> Path:
        """Where a step that takes long keeps what its next run goes on from; removed when its artifact is there."""
        return self.root / "tmp" / f"{fingerprint}{KEPT}"

    @property
    def compiled(self) -> Path:
        """Where what the installed torch compiles for a GPU is kept, for the next process."""
        return self.root / COMPILED / version("torch")

    @property
    def timings(self) -> Path:
        """Where TensorRT's builder keeps what it measured, for the next plan."""
        return self.root / TIMINGS

    @contextmanager
    def lock(self, fingerprint: str) -> Iterator[None]:
        """Held while one process makes `fingerprint`, so that concurrent jobs make it once; says so where it waits."""
        path = self.root / "tmp" / f"{fingerprint}.lock"
        try:
            (self.root / "tmp").mkdir(parents=True, exist_ok=True)
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        except OSError as e:
            if path.is_symlink():
                raise StoreError(f"store: a lock is a link, which is not followed (got {str(path)!r}); remove it") from None
            raise self._unwritable(e) from None
        try:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("waiting for another process, which makes %s; Ctrl-C ends the wait", fingerprint)
                fcntl.flock(number, fcntl.LOCK_EX)
            yield
        finally:
            os.close(number)

    def refer(self, run: Path, artifacts: list[tuple[str, str]]) -> None:
        """Remember that the run directory `run` uses these (kind, fingerprint): `gc` keeps them while it exists."""
        self._note(ROOTS, str(run.absolute()), artifacts)

    def pin(self, name: str, artifacts: list[tuple[str, str]]) -> None:
        """Keep these (kind, fingerprint) for `name`, a run's directory or KIND/FINGERPRINT, until it is unpinned."""
        self._note(PINS, name, artifacts)

    def unpin(self, name: str) -> None:
        self.remove(self.root / PINS / _file(name))

    def pins(self) -> dict[str, list[tuple[str, str]]]:
        """What is kept, by name. Raises StoreError for a file that cannot be read: what it keeps is not known."""
        found = {}
        for path, (name, artifacts) in self.roots(PINS).items():
            if not name:
                raise StoreError(
                    f"store: a pin cannot be read (got {str(path)!r}); `diffopt store verify --drop` puts it aside; pin again"
                )
            found[name] = artifacts
        return found

    def _note(self, folder: str, name: str, artifacts: list[tuple[str, str]]) -> None:
        try:
            (self.root / folder).mkdir(parents=True, exist_ok=True)
            (self.root / "tmp").mkdir(exist_ok=True)
            text = json.dumps({"run": name, "artifacts": artifacts})
            partial = self.root / "tmp" / f"{_file(name)}.{os.getpid()}.root"
            try:
                create(partial, text)
                partial.replace(self.root / folder / _file(name))
                flush(self.root / folder)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as e:
            raise self._unwritable(e) from None

    def references(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Directories of runs, some perhaps gone, and the (kind, fingerprint) of what each refers to."""
        return [found for found in self.roots().values() if found[0]]

    def roots(self, folder: str = ROOTS) -> dict[Path, tuple[str, list[tuple[str, str]]]]:
        """By file the run, and what it refers to; the run is empty where the file was written when the disk ran full."""
        found: dict[Path, tuple[str, list[tuple[str, str]]]] = {}
        for root in sorted((self.root / folder).glob("*.json")):
            try:
                content = schemas.read(root, schemas.Reference)
                found[root] = content["run"], [(kind, fp) for kind, fp in content["artifacts"]]
            except (OSError, ValueError):
                found[root] = "", []
        return found

    def misread(self) -> list[tuple[Path, str]]:
        """The files about artifacts that follow no schema, and what is wrong with each; records are their artifacts' own."""
        found = []
        files = [p for folder in (ROOTS, PINS) for p in sorted((self.root / folder).glob("*.json"))]
        rules: dict[Path, type[BaseModel]] = dict.fromkeys(files, schemas.Reference)
        rules[self.sources] = schemas.Memory
        for path, schema in rules.items():
            try:
                if os.path.lexists(path):
                    schemas.read(path, schema)
            except (OSError, ValueError) as e:
                found.append((path, said(e)))
        return found

    def quarantine(self, path: Path) -> None:
        """Put a file out of the way, where nothing reads it."""
        try:
            (self.root / QUARANTINE).mkdir(exist_ok=True)
            path.rename(self.root / QUARANTINE / f"{path.stem}-{os.getpid()}{path.suffix}")
        except OSError as e:
            raise self._unwritable(e) from None

    @property
    def sources(self) -> Path:
        """Where the digests of sources are remembered."""
        return self.root / "sources.json"

    def remove(self, path: Path) -> None:
        """Remove an artifact or a left-over; killed meanwhile, it leaves a left-over and no half an artifact."""
        try:
            if path.parent.is_symlink():
                raise StoreError(f"store: {path.parent.name} is a link, which is not followed (got {str(path)!r}); remove it")
            artifact = path.parent.parent == self.root and path.parent.name not in INTERNAL
            if artifact and path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
                (self.root / "tmp").mkdir(exist_ok=True)
                path = path.rename(self.root / "tmp" / f"{path.name}-removed-{os.getpid()}")
            remove(path)
        except OSError as e:
            raise self._unwritable(e) from None

    def _concerns(self, path: Path) -> bool:
        """Whether a path that an error names is the store's, or one that it lies in."""
        return path.is_relative_to(self.root) or self.root.is_relative_to(path)

    def locked(self, fingerprint: str) -> bool:
        """Whether a process makes it now."""
        path = self.root / "tmp" / f"{fingerprint}.lock"
        if path.is_symlink() or not path.is_file():
            return False
        with path.open("r") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def scratch(self, fingerprint: str) -> Path:
        (self.root / "tmp").mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{fingerprint}-", dir=self.root / "tmp"))

    def disk_trouble(self, error: BaseException) -> StoreError | None:
        """A line for the user when `error` comes from the disk. Libraries in C++ or Rust only pass on its text."""
        if isinstance(error, DiffoptError):
            return None
        text = str(error).lower()
        code = error.errno if isinstance(error, OSError) else None
        named = getattr(error, "filename", None)
        if isinstance(named, str | Path) and not self._concerns(Path(named).absolute()):
            return None
        if code in (errno.ENOSPC, errno.EDQUOT) or "no space left" in text or "os error 28" in text:
            return StoreError(
                f"store: the disk ran full (got {str(self.root)!r}); free some with `diffopt store gc`, "
                "or set DIFFOPT_STORE to another disk; finished artifacts are kept"
            )
        if code == errno.EFBIG or "os error 27" in text:
            return StoreError(
                f"store: a file is larger than this process may write (got {str(self.root)!r}); raise `ulimit -f`; finished "
                "artifacts are kept"
            )
        if code in (errno.EROFS, errno.EACCES, errno.EPERM) or "read-only file system" in text or "os error 30" in text:
            return StoreError(
                f"store: cannot be written ({os.strerror(code or errno.EROFS).lower()}) (got {str(self.root)!r}); "
                "set DIFFOPT_STORE to a directory that you may write"
            )
        if code == errno.ENOTDIR or code == errno.EEXIST:
            return self._no_directory()
        return None


def said(error: Exception) -> str:
    """What an error says, for the middle of a line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    first = (text.strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return first[0].lower() + first[1:]


def _file(name: str) -> str:
    return f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"


def _age(path: Path) -> float:
    return (path / RECORD).lstat().st_mtime


def _manifest(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256(path)}
