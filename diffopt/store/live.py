"""Runs that use a store now: while there is one, nothing of the store is cleared away."""

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from diffopt.errors import StoreError
from diffopt.store import schemas
from diffopt.store.store import LIVE, Store

log = logging.getLogger("diffopt")
LOCK = "lock"
"""Held by every run together, and by a clean-up alone; the kernel lets go of it for a process that was killed."""


@contextmanager
def running(store: Store, run: Path) -> Iterator[None]:
    """Held by the process of a run, over its own store and those that it reads from."""
    with ExitStack() as held:
        for root in (store.root, *(s.root for s in store.shared)):
            if (number := _opened(root, make=root == store.root)) is not None:
                held.callback(os.close, number)
                _wait(number)
                held.callback(fcntl.flock, number, fcntl.LOCK_UN)  # a process that was forked has it too
        with suppress(OSError):  # a store that cannot be written
            held.enter_context(_noted(store.root / LIVE, run))
        yield


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """Held by a clean-up: a run that begins meanwhile waits. Raises StoreError while a run is live."""
    number = _opened(store.root, make=True)
    if number is None:
        store.check()
        raise StoreError(f"store gc: cannot be written (got {str(store.root)!r}); let its owner do it")
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"store gc: a run is live (got {_live(store.root / LIVE)}); wait for its end, or end it; finished steps stay"
            ) from None
        yield
    finally:
        os.close(number)


def _opened(root: Path, *, make: bool) -> int | None:
    """The lock's file; None where it is not there and cannot be made."""
    path = root / LIVE / LOCK
    with suppress(OSError):
        if make and root.is_dir():
            path.parent.mkdir(exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with suppress(OSError):
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return None


def _wait(number: int) -> None:
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for `diffopt store gc`, which clears the store")
        fcntl.flock(number, fcntl.LOCK_SH)


@contextmanager
def _noted(folder: Path, run: Path) -> Iterator[None]:
    """A file that says which run, locked while the process lives."""
    path = folder / f"{socket.gethostname()}-{os.getpid()}.json"
    path.unlink(missing_ok=True)  # of a process of the same number that was killed
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        note = {"run": str(run.absolute()), "process": os.getpid(), "host": socket.gethostname()}
        note = {"run": str(run.absolute()), "process": os.getpid(), "host": socket.gethostname()}
        os.write(number, json.dumps(note).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        fcntl.flock(number, fcntl.LOCK_UN)
        os.close(number)


def _live(folder: Path) -> str:
    found = []
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError):
            note = schemas.read(path, schemas.Live)
            if _held(path):
                found.append(f"{note['run']}, process {note['process']} on {note['host']}")
    return "; ".join(found) or "one that reads it from a store of its own"


def _held(path: Path) -> bool:
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as e:
        return e.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(number)
    return False


def ended(store: Store) -> list[Path]:
    """Notes of processes that were killed."""
    found = []
    for path in sorted((store.root / LIVE).glob("*.json")):
        with suppress(OSError):
            if not _held(path):
                found.append(path)
    return found
