"""`diffopt store export`: an artifact out of the store, as it lies or as another program loads it, whole or not at all."""

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffopt.artifact import Checkpoint, Components, DeployedCheckpoint, NativeCheckpoint, Pipeline
from diffopt.cli import modelopt_file, refit, store_remote, upload
from diffopt.cli.modelopt_file import Origin
from diffopt.errors import DiffoptError, StoreError
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.pipeline import PipelineFile
from diffopt.report.run_directory import RUN, Run
from diffopt.shipping import ways
from diffopt.shipping.consumers import CONSUMERS
from diffopt.shipping.evidence import checkpoint_of, runs_of
from diffopt.shipping.licence import Licence
from diffopt.shipping.shipment import Shipment
from diffopt.shipping.subject import called
from diffopt.shipping.ways import WAYS, Way
from diffopt.stage import Context
from diffopt.store.entry import RECORD, Entry
from diffopt.store.remote import is_url
from diffopt.store.store import Store
from diffopt.text import size

ABOUT = "an artifact out of the store: whole, or as another program loads it, with its model card"
SHOWN = 12
"""Files that an export names."""
ALONE = "leave the rest of the pipeline out with --backbone-only"
BARE = "copy the artifact as it lies with --bare"


def arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("id", help="KIND/FINGERPRINT, the start of a fingerprint, or a run's directory")
    made.add_argument(
        "directory", type=lambda x: x if is_url(x) else Path(x), help="where to; must not exist. Or s3://BUCKET/PATH, gs://..."
    )
    listed = "; ".join(f"{w.name}: {w.about}" for w in WAYS.values())
    made.add_argument("--as", dest="way", choices=[*WAYS], help=f"what to write a checkpoint as. {listed}")
    made.add_argument(
        "--backbone-only", action="store_true", help="without the other parts of the pipeline, which are gigabytes"
    )
    made.add_argument(
        "--link", action="store_true", help="hard links to those parts instead of copies, where they are on one disk"
    )
    made.add_argument("--source", help="the model a checkpoint was made from, where no run here tells")
    made.add_argument("--lora", action="append", default=[], metavar="FILE", help="likewise an adapter that was fused into it")
    made.add_argument(
        "--bare",
        action="store_true",
        help="the artifact as it lies: a checkpoint without mto.restore's file, weights without a card",
    )
    made.add_argument("--refit", metavar="ID", help="an engine plan with the weights of this graph; needs export.refit=true")
    upload.arguments(made)
    made.set_defaults(run=run)


def run(store: Store, given: argparse.Namespace) -> None:
    if is_url(str(given.directory)):
        store_remote.export(store, given)
        return
    directory: Path = given.directory
    if given.bare and given.way:
        raise StoreError(f"store export: --bare copies an artifact as it lies (got --as {given.way} too); drop one of them")
    if given.refit and (given.way or given.bare or given.push_to_hub):
        raise StoreError("store export: --refit copies a plan out (got another way with it); give --refit alone")
    upload.check(given)
    entry = _named(store, given.id, WAYS[given.way] if given.way else None)
    way = WAYS[given.way] if given.way else None if given.bare else _own(store, entry)
    if given.push_to_hub and not way:
        raise StoreError(f"store export: what goes to the hub needs a way out (got {entry.kind}); name one with --as")
    if way and given.push_to_hub and upload.again(directory, way, entry):
        upload.offer(directory, given)
        return
    if directory.exists():
        raise StoreError(f"store export: the directory exists (got {str(directory)!r}); give a new one")
    if given.refit:
        print(refit.write(entry, store.find(given.refit), directory))
        return
    entry.check_content()
    if way:
        _ship(store, entry, way, given)
    else:
        _copy(store, entry, given)
    if given.push_to_hub:
        upload.offer(directory, given)


def _named(store: Store, name: str, way: Way | None) -> Entry:
    """The artifact, or of a run's directory the one that it was for."""
    if not (Path(name) / RUN).is_file():
        return store.find(name)
    steps = Run(Path(name)).content.steps
    made = [s for s in steps if s.kind in (Checkpoint.kind, DeployedCheckpoint.kind, NativeCheckpoint.kind)]
    found = [e for s in made if (e := store.entry(s.kind, s.fingerprint))]
    if not found:
        raise StoreError(
            f"store export: the run has no checkpoint in this store (got {name!r}, {str(store.root)!r}); run its recipe again, "
            "or name its store with --store"
        )
    drawn = checkpoint_of("sample", steps)
    scored = next((e for e in found if e.fingerprint == drawn), None)
    deployed = [e for e in found if e.kind != Checkpoint.kind]
    if way:
        return next((e for e in deployed if ways.own(e) == way), scored or next(e for e in reversed(found)))
    return deployed[0] if deployed else scored or found[-1]


def _own(store: Store, entry: Entry) -> Way | None:
    """The way that an artifact's weights are for already; None of one that is copied as it lies."""
    way = ways.own(entry)
    if entry.kind == NativeCheckpoint.kind and not _checkpoint(store, entry):  # of which there is nothing to tell
        return None
    return way


def _checkpoint(store: Store, entry: Entry) -> Entry | None:
    if entry.kind == Checkpoint.kind:
        return entry
    fingerprint = entry.record["identity"].get("inputs", {}).get(Checkpoint.kind)
    return store.entry(Checkpoint.kind, fingerprint) if fingerprint else None


def _ship(store: Store, entry: Entry, way: Way, given: argparse.Namespace) -> None:
    shipment = _shipment(store, entry, way, given)
    directory: Path = given.directory
    shipment.check_room(directory.absolute().parent)
    with _partial(directory) as out:
        shipment.write(out, given.push_to_hub or "DIR")
    print("\n".join(_shipped(shipment, directory)))


def _shipment(store: Store, entry: Entry, way: Way, given: argparse.Namespace) -> Shipment:
    """Raises StoreError for an artifact that the way does not take, and for one whose model is not here but needed."""
    if entry.kind not in way.takes:
        kinds = f"{', '.join(way.takes[:-1])} or {way.takes[-1]}"
        raise StoreError(
            f"store export: --as {way.name} takes a {kinds} artifact (got {entry.kind}/{entry.fingerprint}); name one of those"
        )
    scored = _checkpoint(store, entry)
    if scored is None:
        raise StoreError(
            f"store export: the checkpoint that it was made of is gone (got {entry.kind}/{entry.fingerprint}); "
            f"run the recipe again, or {BARE}"
        )
    scored.check_content()
    if refusal := way.refusal(CheckpointFile.read(scored.path)):
        raise StoreError(f"store export: {refusal} (got {entry.kind}/{entry.fingerprint}); go another way")
    components = _components(store, given.id, entry)
    weights = entry if ways.own(entry) == way else _ready(store, scored, way, components)
    fingerprint = scored.record["identity"]["inputs"]["pipeline"]
    pipeline = store.entry(Pipeline.kind, fingerprint)
    alone = given.backbone_only or not way.whole or bool(pipeline and PipelineFile.read(pipeline.path).weights == "random")
    found: Origin | None = None
    try:
        found = modelopt_file.origin(store, scored, given.source, given.lora, ALONE if weights else BARE)
    except StoreError:
        if pipeline is None or not (weights and alone):
            raise
    made = found.pipeline if found else Pipeline(pipeline.path, fingerprint)  # type: ignore[union-attr]
    return Shipment(
        way=way,
        store=store,
        pipeline=made,
        checkpoint=scored,
        weights=weights,
        model=_model(store, scored, PipelineFile.read(made.path), given.source),
        source=found.directory if found else None,
        context=found.context if found else _nowhere,
        whole=not alone,
        components=components,
        link=given.link,
    )


def _components(store: Store, name: str, entry: Entry) -> Entry | None:
    """Text encoders in fewer bits: those that weights were written with, or a run's pictures were drawn with."""
    fingerprint = entry.record["identity"].get("inputs", {}).get(Components.kind)
    if not fingerprint and (Path(name) / RUN).is_file():
        fingerprint = checkpoint_of("sample", Run(Path(name)).content.steps, Components.kind)
    return store.entry(Components.kind, fingerprint) if fingerprint else None


def _nowhere(out: Path) -> Context:
    raise AssertionError(out)  # nothing is opened of a model that is not here


def _ready(store: Store, scored: Entry, way: Way, components: Entry | None) -> Entry | None:
    """Weights of this checkpoint, with these text encoders, that the store has for this way already, whole."""
    wanted = components.fingerprint if components and way.whole else None
    for entry in store.entries(way.artifact.kind) if way.artifact else ():
        inputs = entry.record["identity"].get("inputs", {})
        same = (inputs.get(Checkpoint.kind), inputs.get(Components.kind)) == (scored.fingerprint, wanted)
        if same and ways.own(entry) == way and not entry.problems():
            return entry
    return None


def _model(store: Store, scored: Entry, pinned: PipelineFile, source: str | None) -> str:
    """What the base model is called."""
    named = [source] if source else []
    with suppress(DiffoptError, OSError, KeyError):
        models = [r.config["model"] for r in runs_of(store, scored.fingerprint)[:1]]
        named += [str(m.get("base") or m["source"]) for m in models]
    return called(pinned, named[0] if named else "")


@contextmanager
def _partial(directory: Path) -> Iterator[Path]:
    """A directory beside `directory`, which gets its name when all is written, and is gone otherwise."""
    work = directory.absolute().parent / f".{directory.name}.{os.getpid()}"
    try:
        work.mkdir(parents=True)
        yield work
        work.rename(directory)
    except OSError as e:
        reason = (e.strerror or str(e)).lower()
        raise StoreError(f"store export: cannot be written ({reason}) (got {str(directory)!r}); give another") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _copy(store: Store, entry: Entry, given: argparse.Namespace) -> None:
    directory: Path = given.directory
    origin = None
    if entry.kind == Checkpoint.kind and not given.bare:
        origin = modelopt_file.origin(store, entry, given.source, given.lora)
    with _partial(directory) as out:
        for name in [*sorted(entry.record["files"]), RECORD]:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(entry.path / name, out / name)
        if origin:
            modelopt_file.write(origin, entry, out)
    if entry.kind == NativeCheckpoint.kind:
        with suppress(DiffoptError):  # of a model that is not here any more the packed backbone is still whole
            origin = modelopt_file.origin(store, entry, given.source, given.lora)
    print("\n".join([*_listed(f"{entry.kind} {entry.fingerprint}", directory), *_loading(entry, directory, origin)]))


def _listed(what: str, directory: Path) -> Iterator[str]:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    yield f"{directory}: {what}, {size(sum(p.stat().st_size for p in files))}"
    for file in files[:SHOWN]:
        yield f"  {file.relative_to(directory)!s:32} {size(file.stat().st_size):>10}"
    if len(files) > SHOWN:
        yield f"  and {len(files) - SHOWN} more files"


def _loading(entry: Entry, directory: Path, origin: Origin | None) -> Iterator[str]:
    from diffopt.cli import loading

    code, remark = loading.lines(entry, directory.resolve(), origin)
    yield "to load it in Python:"
    yield from (f"    {line}" for line in code)
    if remark:
        yield remark
    if commands := loading.by_hand(entry, directory.resolve()):
        yield "with TensorRT's own programs:"
        yield from (f"  $ {line}" for line in commands)


def _shipped(shipment: Shipment, directory: Path) -> Iterator[str]:
    yield from _listed(f"{Checkpoint.kind} {shipment.checkpoint.fingerprint} as {shipment.way.name}", directory)
    if shipment.pinned.weights == "random":
        yield "the base model's weights were random: there is no rest of the pipeline to copy, and nothing to score"
    subject = shipment.subject(Licence(), 0, "DIR")
    for consumer in CONSUMERS:
        refusal = consumer.refusal(subject.load)
        yield f"{consumer.name + ':':14} {f'no, {refusal}' if refusal else 'README.md says how'}"
    if shipment.way.artifact is NativeCheckpoint:
        yield 'diffopt:       diffopt.load("DIR")'
