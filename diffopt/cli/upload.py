"""`diffopt store export --push-to-hub`: what would be uploaded, and with --yes the upload."""

import argparse
from pathlib import Path

from diffopt.artifact import Checkpoint
from diffopt.errors import StoreError
from diffopt.files.export import ExportFile
from diffopt.shipping import push, shipment
from diffopt.shipping.ways import Way
from diffopt.store.entry import Entry
from diffopt.text import size


def arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("--push-to-hub", metavar="REPO", help="then say what would be uploaded to this repository of the hub")
    made.add_argument("--private", action="store_true", help="make the repository a private one, where there is none")
    made.add_argument("--yes", action="store_true", help="upload it; without this it is only listed")


def check(given: argparse.Namespace) -> None:
    """Raises StoreError for flags that mean nothing alone, and for what is no repository."""
    for flag in ("private", "yes"):
        if getattr(given, flag) and not given.push_to_hub:
            raise StoreError(f"store export: there is nothing to upload (got --{flag}); name a repository by --push-to-hub")
    if given.push_to_hub:
        push.check(given.push_to_hub)


def again(directory: Path, way: Way, entry: Entry) -> bool:
    """Whether a directory that exists was written from this artifact, so that it is uploaded as it stands.

    Raises StoreError for one that was changed since, its card aside.
    """
    if not (directory / ExportFile.NAME).is_file():
        return False
    head = ExportFile.read(directory)
    own = head.artifacts.get(entry.kind) == entry.fingerprint
    made = entry.record["identity"].get("inputs", {}).get(Checkpoint.kind)
    if head.way != way.name or not (own or made == head.artifacts.get(Checkpoint.kind)):
        return False
    if changed := shipment.differs(directory):
        raise StoreError(
            f"store export: the directory is not as it was written: {changed} (got {str(directory)!r}); give a new one"
        )
    return True


def offer(directory: Path, given: argparse.Namespace) -> None:
    """Say what is uploaded, and do so where the user has said yes."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    total = size(sum(p.stat().st_size for p in files))
    seen = "private" if given.private else "public"
    print(f"to the hub: {given.push_to_hub}, {seen} where there is none yet; {len(files)} files, {total}")
    for path in files:
        print(f"  {path.relative_to(directory)!s:60} {size(path.stat().st_size):>10}")
    if not given.yes:
        print("nothing was uploaded; the same command with --yes uploads this")
        return
    print(f"uploaded: {push.upload(directory, given.push_to_hub, private=given.private)}")
