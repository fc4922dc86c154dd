"""`diffopt store export` to an object storage, and `import` from one."""

import argparse
from pathlib import Path

from diffopt.errors import StoreError
from diffopt.report.run_directory import RUN, Run
from diffopt.store import arrival, departure
from diffopt.store.entry import Entry
from diffopt.store.remote import Remote, is_url
from diffopt.store.store import Store
from diffopt.text import printable, size


def export(store: Store, given: argparse.Namespace) -> None:
    """Artifacts as they lie; below a place that ends in a slash by KIND/FINGERPRINT, as a shared store has them.

    Raises StoreError, which names the object that did not arrive.
    """
    url = str(given.directory)
    if given.way or given.refit or given.push_to_hub:
        raise StoreError(f"store export: an object storage takes artifacts as they lie (got {url!r}); export to a directory")
    entries = _run(store, Path(given.id)) if (Path(given.id) / RUN).is_file() else [store.find(given.id)]
    if not url.endswith("/") and len(entries) != 1:
        raise StoreError(f"store export: a run has {len(entries)} artifacts (got {url!r}); end it with a slash for all of them")
    for entry in entries:
        entry.check_content()
    for entry in entries:
        name = f"{entry.kind}/{entry.fingerprint}"
        remote = Remote(url + name if url.endswith("/") else url)
        sent = departure.send(entry, remote)
        print(printable(f"{name}  {size(entry.bytes)}  {'to' if sent else 'is there already:'} {remote.url}"))


def _run(store: Store, directory: Path) -> list[Entry]:
    steps = Run(directory).content.steps
    found = {(s.kind, s.fingerprint): e for s in steps if (e := store.entry(s.kind, s.fingerprint))}
    return [*found.values()]


def take(store: Store, places: list[str]) -> None:
    for place in places:
        entry = arrival.fetch(store, Remote(place.rstrip("/"))) if is_url(place) else arrival.take(store, Path(place))
        print(printable(f"{entry.kind}/{entry.fingerprint}  {size(entry.bytes)}"))
