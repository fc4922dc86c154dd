"""`diffopt store gc`, `pin` and `unpin`: what is cleared away, and what a user wants kept."""

from pathlib import Path

from diffopt.errors import StoreError, suggestion
from diffopt.report.run_directory import RUN, Run
from diffopt.store import live
from diffopt.store.entry import Entry
from diffopt.store.garbage import age, garbage
from diffopt.store.store import Store
from diffopt.text import printable, size


def clear(store: Store, yes: bool, older: str | None) -> None:
    seconds = age(older) if older else 0.0
    if yes:
        with live.alone(store):
            _clear(store, True, seconds)
    else:
        _clear(store, False, seconds)


def _clear(store: Store, yes: bool, seconds: float) -> None:
    unused, stale = garbage(store, seconds)
    for entry in unused:
        print(printable(f"{entry.kind}/{entry.fingerprint}  {size(entry.bytes)}"))
    for path in stale:
        print(printable(str(path.relative_to(store.root))))
    total = size(sum(e.bytes for e in unused))
    if yes:
        for path in [*(e.path for e in unused), *stale]:
            store.remove(path)
    verb = "removed" if yes else "to remove with --yes"
    print(f"{len(unused)} artifacts, {total}, and {len(stale)} left-overs {verb}")


def pin(store: Store, name: str) -> None:
    """A run's artifacts, or an artifact and what it was made from."""
    if (Path(name) / RUN).is_file():
        called = str(Path(name).absolute())
        steps = [(s.kind, s.fingerprint) for s in Run(Path(name)).content.steps]
        mine = {(e.kind, e.fingerprint) for e in store.entries()}
        kept = [found for found in steps if found in mine]
    else:
        entry = store.find(name)
        called = f"{entry.kind}/{entry.fingerprint}"
        kept = [(e.kind, e.fingerprint) for e in _lineage(store, entry)]
    if not kept:
        raise StoreError(f"store pin: nothing of it is in this store (got {name!r}); run its recipe again, or name its store")
    store.pin(called, kept)
    print(printable(f"{called}: {len(kept)} artifacts are kept until it is unpinned"))


def _lineage(store: Store, entry: Entry) -> list[Entry]:
    known = {e.fingerprint: e for e in store.entries()}
    found, pending = dict[str, Entry](), [entry.fingerprint]
    while pending:
        name = pending.pop()
        if name in known and name not in found:
            found[name] = known[name]
            pending += known[name].inputs
    return [*found.values()]


def unpin(store: Store, name: str) -> None:
    pins = store.pins()
    found = [p for p in pins if p == str(Path(name).absolute()) or p.startswith(name) or p.partition("/")[2].startswith(name)]
    if len(found) != 1:
        what = f"{len(found)} pins begin so" if found else "is not pinned"
        raise StoreError(f"store unpin: {what} (got {name!r}); {suggestion(name, found or pins)}")
    store.unpin(found[0])
    print(printable(f"{found[0]}: `diffopt store gc` keeps it no longer"))
