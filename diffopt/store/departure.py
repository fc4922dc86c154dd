"""An artifact out to an object storage. Its record goes last, so that what is not whole is not taken for one."""

from pathlib import Path
from typing import Any

from diffopt.errors import StoreError
from diffopt.store import schemas
from diffopt.store.entry import RECORD, Entry
from diffopt.store.remote import Remote

SENT = ".sent.json"
"""The sha256 of what has arrived there so far, by name: the same command goes on from it."""


def send(entry: Entry, remote: Remote) -> bool:
    """Whether it was sent; False where it is there already. Raises StoreError where another is there."""
    record = (entry.path / RECORD).read_bytes()
    there = remote.read(RECORD)
    if there is not None:
        if there == record:
            return False
        raise StoreError(f"store export: another artifact is there (got {remote.url!r}); give another place")
    sent = _sent(remote)
    if sent is None and remote.names():
        raise StoreError(f"store export: something else is there (got {remote.url!r}); give another place")
    sent = sent or {}
    for name, about in entry.record["files"].items():
        if sent.get(name) != about["sha256"]:
            remote.send(entry.path / name, name)
            sent[name] = about["sha256"]
            remote.write(SENT, sent)
    remote.send(Path(entry.path / RECORD), RECORD)
    remote.drop(SENT)
    return True


def _sent(remote: Remote) -> dict[str, Any] | None:
    """None where nothing says so: one that cannot be read is begun again."""
    content = remote.read(SENT)
    if content is None:
        return None
    try:
        found: dict[str, Any] = schemas.parse(content, schemas.Sent)
    except ValueError:
        return {}
    return found
