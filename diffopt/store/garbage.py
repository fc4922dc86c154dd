"""What of a store nobody asks for any more."""

import re
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from diffopt.errors import StoreError
from diffopt.store import live
from diffopt.store.entry import Entry
from diffopt.store.store import COMPILED, KEPT, PLOTS, TIMINGS, Store

AGE = re.compile(r"(\d+)([hdw])")
SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}
ENGINE = "engine"
"""The kind of artifact that TensorRT's builder makes."""


def age(text: str) -> float:
    """Seconds of `12h`, `30d` or `4w`. Raises StoreError for what is none."""
    found = AGE.fullmatch(text)
    if found is None:
        raise StoreError(f"store gc: --older-than is no age (got {text!r}); write hours, days or weeks, as 12h, 30d or 4w")
    return float(found[1]) * SECONDS[found[2]]


def garbage(store: Store, older: float = 0) -> tuple[list[Entry], list[Path]]:
    """Artifacts that no existing run refers to and no pin keeps, and left-overs: what killed runs left that nobody holds a lock
    on, plots and timings of what is gone, what another version of torch compiled. Of artifacts and of what runs left only those
    that are older than `older` seconds.

    What a step keeps for its next run stays while a run refers to the artifact that it is to become. Raises StoreError for a
    pin that cannot be read.
    """
    used, stale = _used(store)
    before = time.time() - older
    scratch = [p for p in sorted((store.root / "tmp").glob("*-*")) if p.is_dir()]  # lock files stay: another may wait on one
    wanted = {f"{fp}{KEPT}" for _, fp in used}
    stale += [p for p in scratch if p.name not in wanted and not store.locked(p.name.split("-")[0]) and _made(p) <= before]
    unused = [e for e in store.entries() if (e.kind, e.fingerprint) not in used and _made(e.path / "record.json") <= before]
    gone = {(e.kind, e.fingerprint) for e in unused}
    kept = [e for e in store.entries() if (e.kind, e.fingerprint) not in gone]
    shown = {f"{e.fingerprint}.json" for e in kept} | {f"{fp}.json" for _, fp in used}
    stale += [p for p in sorted((store.root / PLOTS).glob("*")) if p.name not in shown]
    stale += [p for p in sorted((store.root / COMPILED).glob("*")) if p != store.compiled]
    stale += _timings(store, kept)
    return unused, [*stale, *live.ended(store)]


def _used(store: Store) -> tuple[set[tuple[str, str]], list[Path]]:
    """Kinds and fingerprints that runs and pins refer to, and the files of runs that are gone."""
    used = {found for artifacts in store.pins().values() for found in artifacts}
    stale = []
    for root, (run, artifacts) in store.roots().items():
        if run and Path(run).is_dir():
            used |= {*artifacts}
        else:
            stale.append(root)
    return used, stale


def _timings(store: Store, kept: list[Entry]) -> list[Path]:
    """Timings of a TensorRT that is not installed here, and of which no engine plan is left."""
    there = set()
    with suppress(PackageNotFoundError):
        there.add(f"tensorrt-{version('tensorrt')}-")
    for entry in kept:
        with suppress(StoreError):  # one that was changed, which `verify` tells of
            builder = entry.record["identity"].get("environment", {}).get("tensorrt") if entry.kind == ENGINE else None
            if builder:
                there.add(f"{builder.get('flavour')}-{builder.get('version')}-")
    files = sorted((store.root / TIMINGS).glob("*"))
    return [p for p in files if not p.name.startswith((*there, "."))]


def _made(path: Path) -> float:
    return path.lstat().st_mtime
