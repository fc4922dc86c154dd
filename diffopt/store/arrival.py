"""Artifacts that come into a store from elsewhere: checked by the hashes of their records, whole or not at all."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from diffopt.errors import StoreError
from diffopt.store.entry import Entry, exported
from diffopt.store.files import remove
from diffopt.store.fingerprint import fingerprint
from diffopt.store.remote import Remote
from diffopt.store.store import INTERNAL, Store
from diffopt.text import size

log = logging.getLogger("diffopt")
ARRIVING = "-arriving"
"""Ends the name of what has arrived of an artifact, in `tmp`: it goes on from there when it is asked for again."""


def take(store: Store, directory: Path) -> Entry:
    """Copy in what `diffopt store export` has written, perhaps on another machine, without what it added.

    Raises StoreError where it is not as it was made.
    """
    given = exported(directory)
    _check_kind(given.kind)
    work: Path | None = None
    try:
        store.open()
        with store.lock(given.fingerprint):
            if there := Store(store.root).entry(given.kind, given.fingerprint):
                return there
            work = store.scratch(given.fingerprint)
            for name in given.record["files"]:
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                given.copy(name, work / name)
            return _placed(store, work, given.record)
    except BaseException as e:
        if work and work.exists():
            remove(work)
        if reason := store.disk_trouble(e):
            raise reason from None
        raise


def bring(store: Store, kind: str, name: str) -> Entry | None:
    """The finished artifact, out of an object storage where the store itself has it not; None where none has it."""
    if there := store.entry(kind, name):
        return there
    for remote in store.remotes:
        if remote.record(f"{kind}/{name}"):
            return fetch(store, remote.below(f"{kind}/{name}"))
    return None


def fetch(store: Store, remote: Remote) -> Entry:
    """Likewise the artifact at a place in an object storage. What has arrived of it is kept where the transfer breaks.

    Raises StoreError, which names the object.
    """
    record = remote.record("")
    if record is None:
        raise StoreError(f"store import: there is no record.json (got {remote.url!r}); give what was exported")
    _check_kind(record["kind"])
    name = fingerprint(record["identity"])
    try:
        store.open()
        with store.lock(name):
            if there := Store(store.root).entry(record["kind"], name):
                return there
            return _fetched(store, remote, record, name)
    except Exception as e:
        if reason := store.disk_trouble(e):
            raise reason from None
        raise


def _fetched(store: Store, remote: Remote, record: dict[str, Any], name: str) -> Entry:
    work = store.root / "tmp" / f"{name}{ARRIVING}"
    if work.is_symlink():
        remove(work)
    work.mkdir(exist_ok=True)
    files = record["files"]
    for old in [p for p in work.rglob("*") if not p.is_dir() and (p.is_symlink() or str(p.relative_to(work)) not in files)]:
        old.unlink()
    there = sum(p.stat().st_size for p in work.rglob("*") if p.is_file())
    whole = sum(about["size"] for about in files.values())
    more = f", {size(there)} of it are here" if there else ""
    log.info("store   %s/%s: %s to download from %s%s", record["kind"], name, size(whole), remote.url, more)
    if (left := shutil.disk_usage(work).free) < whole - there:
        raise StoreError(
            f"store: {remote.url} has {size(whole - there)} to download, and the disk has {size(left)} left "
            f"(got {str(store.root)!r}); free some with `diffopt store gc`, or set DIFFOPT_STORE to another disk"
        )
    for file, about in files.items():
        remote.fetch(file, about, work / file)
    return _placed(store, work, record)


def _placed(store: Store, work: Path, record: dict[str, Any]) -> Entry:
    kind, name = record["kind"], fingerprint(record["identity"])
    store.place(work, kind, name, json.dumps(record, indent=1, sort_keys=True))
    return Entry(kind, name, store.root / kind / name)


def _check_kind(kind: str) -> None:
    if kind in INTERNAL:
        raise StoreError(f"store import: is no artifact (got the kind {kind!r}); give what was exported")
