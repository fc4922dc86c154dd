"""A checkpoint as one file that plain modelopt reads: weights, quantizers and what modelopt did to the model.

import modelopt.torch.opt as mto, modelopt.torch.quantization
mto.restore(backbone, "modelopt.pt")    # the plain backbone, e.g. FluxTransformer2DModel.from_pretrained(...)
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffopt.artifact import Checkpoint, Pipeline
from diffopt.errors import DiffoptError, StoreError
from diffopt.source import Source, Sources, read
from diffopt.store import ROOTS, Entry, Store

FILE = "modelopt.pt"


def portable(model: Any, path: Path) -> None:
    """Write what `mto.restore` reads, from a backbone that `checkpoint.restore` gave."""
    import modelopt.torch.opt as mto

    mto.save(model, path)


@dataclass(frozen=True)
class Origin:
    """What a checkpoint in a store was made from."""

    pipeline: Pipeline
    sources: Sources


def origin(store: Store, entry: Entry, source: str | None) -> Origin:
    """Find the pipeline of a checkpoint and its model's files; `source` names the model where no run in reach says so.

    Raises StoreError where they are not found.
    """
    found = store.entry("pipeline", entry.record["identity"]["inputs"]["pipeline"])
    if found is None:
        raise StoreError(
            f"store export: the pipeline of the checkpoint is gone (got {entry.fingerprint}); run the recipe again, "
            "or copy the checkpoint alone with --bare"
        )
    pipeline = Pipeline(found.path, found.fingerprint)
    digest = pipeline.json("pipeline.json")["source"]
    sources = Sources(store.root / "sources.json")
    if not any(sources.digest(s) == digest for s in _candidates(store, entry, digest, source)):
        raise StoreError(
            f"store export: the model that the checkpoint was made from is not there (got {source or digest}); "
            "name it with --source=DIRECTORY, or copy the checkpoint alone with --bare"
        )
    return Origin(pipeline, sources)


def write(origin: Origin, entry: Entry, out: Path) -> None:
    """Write a checkpoint's portable file into the directory `out`."""
    from diffopt.checkpoint import restore
    from diffopt.environment import gpus
    from diffopt.quiet import hushed
    from diffopt.stage import Context

    context = Context(out, origin.sources.pinned, origin.sources.locate, "cuda" if gpus() else "cpu")
    with hushed():
        portable(restore(context, origin.pipeline, Checkpoint(entry.path, entry.fingerprint)), out / FILE)


def _candidates(store: Store, entry: Entry, digest: str, source: str | None) -> list[Source]:
    """Models that may be the one: the one that was named, a commit of the hub, what the runs that made it were given."""
    if source:
        try:
            return [read(source)]
        except ValueError:
            return []
    if digest.startswith("hub:"):
        return [read(digest.removeprefix("hub:"))]
    found = []
    for root in (store.root / ROOTS).glob("*.json"):
        try:
            content = json.loads(root.read_text())
            if [entry.kind, entry.fingerprint] in content["artifacts"]:
                found.append(read(_model(Path(content["run"]))))
        except (OSError, ValueError, KeyError, DiffoptError):  # a run that is gone, or whose model is
            continue
    return found


def _model(run: Path) -> Any:
    from diffopt.run import Run

    return Run(run).config["model"]["source"]
