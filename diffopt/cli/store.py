"""`diffopt store`: look at the artifacts, check them, throw away what nothing uses."""

import json
import os

from diffopt.cli import export, store_clearing, store_remote
from diffopt.cli.arguments import Parser
from diffopt.cli.commands import COMMANDS
from diffopt.errors import StoreError, suggestion
from diffopt.store.entry import Entry
from diffopt.store.source import Sources
from diffopt.store.store import QUARANTINE, Store
from diffopt.text import printable


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
    gc.add_argument("--older-than", metavar="AGE", help="only what was made longer ago, as 12h, 30d or 4w")
    gc.set_defaults(run=lambda store, a: store_clearing.clear(store, a.yes, a.older_than))
    pin = actions.add_parser("pin", help="keep the artifacts of a run, or one with what it was made from, whatever gc finds")
    pin.add_argument("id", metavar="RUN|ID", help="a run's directory, KIND/FINGERPRINT, or the start of a fingerprint")
    pin.set_defaults(run=lambda store, a: store_clearing.pin(store, a.id))
    unpin = actions.add_parser("unpin", help="let gc have it again")
    unpin.add_argument("id", metavar="RUN|ID", help="as it was pinned")
    unpin.set_defaults(run=lambda store, a: store_clearing.unpin(store, a.id))
    take = actions.add_parser("import", help="copy in what `export` has written, here or on another machine")
    take.add_argument("places", nargs="+", metavar="DIRECTORY", help="what was exported; or s3://BUCKET/PATH, gs://BUCKET/PATH")
    take.set_defaults(run=lambda store, a: store_remote.take(store, a.places))
    export.arguments(actions.add_parser("export", help=export.ABOUT))
    sources = actions.add_parser("sources", help="the commits at which branches of the hub are used")
    sources.add_argument("names", nargs="*", metavar="ORG/NAME", help="only these")
    sources.add_argument("--ask", action="store_true", help="ask the hub what they are now: the next run uses that")
    sources.set_defaults(run=lambda store, a: _sources(store, a.names, a.ask))
    return made


def command(arguments: list[str]) -> None:
    given = parser().parse_args(arguments)
    store = Store.at(given.store)
    if not os.path.isdir(store.root) and not hasattr(given, "places"):
        if os.path.exists(store.root):
            store.check()
        raise StoreError(f"store: there is none (got {str(store.root)!r}); run a recipe first, or set DIFFOPT_STORE")
    given.run(store, given)


def _ls(store: Store, kind: str | None) -> None:
    from diffopt.cli.store_list import Listing

    print(printable("\n".join(Listing(store, kind).lines())))


def _show(store: Store, name: str) -> None:
    entry = store.find(name)
    print(entry.path)
    print(json.dumps(entry.record, indent=1, sort_keys=True))


def _verify(store: Store, drop: bool) -> None:
    entries = store.entries()
    found = {_path(e): problems for e in entries if (problems := e.problems())}
    for entry in entries:
        if said := found.get(_path(entry)):
            print(printable(f"{_path(entry)}: {'; '.join(said)}"))
    bad = [e for e in entries if _path(e) in found]
    bad += _made_from(bad, [e for e in entries if _path(e) not in found])
    others = [(p, "has no record") for p in store.unfinished()]
    misread = store.misread()
    for path, what in [*others, *misread]:
        print(printable(f"{path.relative_to(store.root)}: {what}"))
    if drop:
        for path in [*(e.path for e in bad), *(p for p, _ in others)]:
            store.remove(path)
        for path, _ in misread:
            store.quarantine(path)
    elif bad or others or misread:
        first = next(iter([*map(_path, bad), *(str(p.relative_to(store.root)) for p, _ in [*others, *misread])]))
        raise StoreError(
            f"store: {len(bad)} of {len(entries)} artifacts were changed or are made from such, and "
            f"{len(others) + len(misread)} other files are not as they should be (got {first} ...); "
            "`diffopt store verify --drop` removes them, the next run makes them again"
        )
    gone = f"; {len(bad) + len(others)} removed" if bad or others else ""
    print(f"{len(entries) - len(bad)} artifacts are as they were made{gone}" + (_aside(store, len(misread)) if misread else ""))


def _path(entry: Entry) -> str:
    return f"{entry.kind}/{entry.fingerprint}"


def _aside(store: Store, many: int) -> str:
    return f"; {many} put into {store.root / QUARANTINE}"


def _made_from(bad: list[Entry], sound: list[Entry]) -> list[Entry]:
    """Those among the sound ones that are made from bad ones, perhaps through others: before or after, no one can tell."""
    fingerprints, found = {e.fingerprint for e in bad}, list[Entry]()
    while made := [e for e in sound if e.fingerprint not in fingerprints and e.inputs & fingerprints]:
        for entry in made:
            fingerprints.add(entry.fingerprint)
            found.append(entry)
            print(f"{_path(entry)}: is made from one that was changed")
    return found


def _sources(store: Store, names: list[str], ask: bool) -> None:
    known = Sources(store.sources)
    found = {b: c for b, c in known.branches().items() if not names or b in names or b.rpartition("@")[0] in names}
    for name in names:
        if not any(name in (b, b.rpartition("@")[0]) for b in found):
            there = suggestion(name, [b.rpartition("@")[0] for b in known.branches()])
            raise StoreError(f"store sources: no run has used it (got {name!r}); {there}")
    for branch, commit in found.items():
        now = known.ask_again(branch) if ask else commit
        moved = f" -> {now}, which the next run uses" if now != commit else " as before" if ask else ""
        print(printable(f"{branch}  {commit}{moved}"))
    print(f"{len(found)} branches")
