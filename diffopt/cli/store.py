"""`diffopt store`: look at the artifacts, check them, throw away what nothing uses."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from diffopt.artifact import Checkpoint, NativeCheckpoint
from diffopt.cli import modelopt_file
from diffopt.cli.arguments import Parser
from diffopt.cli.commands import COMMANDS
from diffopt.errors import DiffoptError, StoreError
from diffopt.store.store import RECORD, Entry, Store
from diffopt.text import size

SHOWN = 12
"""Files that an export names."""


def parser() -> Parser:
    made = Parser("diffopt store", description="The artifact store.")
    made.add_argument("--store", default=os.environ.get("DIFFOPT_STORE", "outputs/store"), help="its directory")
    actions = made.add_subparsers(required=True, metavar=" | ".join(COMMANDS["store"].actions))
    ls = actions.add_parser("ls", help="every artifact: its size, its date, what made it, of which model and for which recipe")
    ls.add_argument("kind", nargs="?", help="only this kind")
    ls.set_defaults(run=lambda store, a: _ls(store, a.kind))
    show = actions.add_parser("show", help="one artifact: its files, identity and provenance")
    show.add_argument("id", help="KIND/FINGERPRINT, or the start of a fingerprint")
    show.set_defaults(run=lambda store, a: _show(store, a.id))
    verify = actions.add_parser("verify", help="check every file by its sha256")
    verify.add_argument("--drop", action="store_true", help="remove the artifacts that were changed")
    verify.set_defaults(run=lambda store, a: _verify(store, a.drop))
    gc = actions.add_parser("gc", help="what no existing run refers to, and left-overs of killed runs")
    gc.add_argument("--yes", action="store_true", help="remove it; without this it is only listed")
    gc.set_defaults(run=lambda store, a: _gc(store, a.yes))
    export = actions.add_parser("export", help="copy one artifact out whole; a checkpoint with the file that mto.restore reads")
    export.add_argument("id", help="KIND/FINGERPRINT, or the start of a fingerprint")
    export.add_argument("directory", type=Path, help="where to; must not exist")
    export.add_argument("--source", help="the model a checkpoint was made from, where no run here tells")
    export.add_argument(
        "--lora", action="append", default=[], metavar="FILE", help="likewise an adapter that was fused into it"
    )
    export.add_argument("--bare", action="store_true", help="a checkpoint alone, without the file that mto.restore reads")
    export.set_defaults(run=lambda store, a: _export(store, a.id, a.directory, a.source, a.lora, a.bare))
    return made


def command(arguments: list[str]) -> None:
    given = parser().parse_args(arguments)
    store = Store.at(given.store)
    if not os.path.isdir(store.root):
        if os.path.exists(store.root):
            store.check()
        raise StoreError(f"store: there is none (got {str(store.root)!r}); run a recipe first, or set DIFFOPT_STORE")
    given.run(store, given)


def _ls(store: Store, kind: str | None) -> None:
    from diffopt.cli.store_list import Listing

    print("\n".join(Listing(store, kind).lines()))


def _show(store: Store, name: str) -> None:
    entry = store.find(name)
    print(entry.path)
    print(json.dumps(entry.record, indent=1, sort_keys=True))


def _verify(store: Store, drop: bool) -> None:
    entries = store.entries()
    found = {e.fingerprint: problems for e in entries if (problems := e.problems())}
    bad = [e for e in entries if e.fingerprint in found]
    for entry in bad:
        print(f"{entry.kind}/{entry.fingerprint}: {'; '.join(found[entry.fingerprint])}")
    sound = [e for e in entries if e.fingerprint not in found]
    while made := [e for e in sound if e.inputs & set(found)]:  # before or after the change: no one can tell
        for entry in made:
            found[entry.fingerprint] = []
            bad.append(entry)
            print(f"{entry.kind}/{entry.fingerprint}: is made from one that was changed")
        sound = [e for e in sound if e.fingerprint not in found]
    for entry in bad if drop else []:
        store.remove(entry.path)
    if bad and not drop:
        raise StoreError(
            f"store: {len(bad)} of {len(entries)} artifacts were changed or are made from such "
            f"(got {bad[0].kind}/{bad[0].fingerprint} ...); "
            "`diffopt store verify --drop` removes them, the next run makes them again"
        )
    print(f"{len(entries) - len(bad)} artifacts are as they were made" + (f"; {len(bad)} removed" if bad else ""))


def _gc(store: Store, yes: bool) -> None:
    unused, stale = store.garbage()
    for entry in unused:
        print(f"{entry.kind}/{entry.fingerprint}  {size(entry.bytes)}")
    for path in stale:
        print(path.relative_to(store.root))
    if yes:
        for path in [*(e.path for e in unused), *stale]:
            store.remove(path)
    verb = "removed" if yes else "to remove with --yes"
    print(f"{len(unused)} artifacts, {size(sum(e.bytes for e in unused))}, and {len(stale)} left-overs {verb}")


def _export(store: Store, name: str, directory: Path, source: str | None, adapters: list[str], bare: bool) -> None:
    entry = store.find(name)
    if directory.exists():
        raise StoreError(f"store export: the directory exists (got {str(directory)!r}); give a new one")
    entry.check_sizes()
    origin = modelopt_file.origin(store, entry, source, adapters) if entry.kind == Checkpoint.kind and not bare else None
    try:
        directory.mkdir(parents=True)
        for name in [*sorted(entry.record["files"]), RECORD]:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(entry.path / name, directory / name)
        if origin:
            modelopt_file.write(origin, entry, directory)
    except OSError as e:
        reason = (e.strerror or str(e)).lower()
        raise StoreError(f"store export: cannot be written ({reason}) (got {str(directory)!r}); give another") from None
    if entry.kind == NativeCheckpoint.kind:
        with suppress(DiffoptError):  # of a model that is not here any more the packed backbone is still whole
            origin = modelopt_file.origin(store, entry, source, adapters)
    print("\n".join(_exported(entry, directory, origin)))


def _exported(entry: Entry, directory: Path, origin: modelopt_file.Origin | None) -> Iterator[str]:
    """What was written, and how to load it."""
    from diffopt.cli import loading

    files = sorted(p for p in directory.rglob("*") if p.is_file())
    yield f"{directory}: {entry.kind} {entry.fingerprint}, {size(sum(p.stat().st_size for p in files))}"
    for file in files[:SHOWN]:
        yield f"  {file.relative_to(directory)!s:32} {size(file.stat().st_size):>10}"
    if len(files) > SHOWN:
        yield f"  and {len(files) - SHOWN} more files"
    code, remark = loading.lines(entry, directory.resolve(), origin)
    yield "to load it in Python:"
    yield from (f"    {line}" for line in code)
    if remark:
        yield remark
