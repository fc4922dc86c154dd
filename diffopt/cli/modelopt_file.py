"""A checkpoint as one file that plain modelopt reads: weights, quantizers and what modelopt did to the model.

Adapters that were fused are in the weights: the backbone that it is restored on is the plain one, without them.

import modelopt.torch.opt as mto, modelopt.torch.quantization
mto.restore(backbone, "modelopt.pt")    # the plain backbone, e.g. FluxTransformer2DModel.from_pretrained(...)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffopt.artifact import Checkpoint, Pipeline
from diffopt.errors import DiffoptError, StoreError
from diffopt.files.pipeline import PipelineFile
from diffopt.groups import Model
from diffopt.groups.lora_file import Adapter
from diffopt.store.entry import Entry
from diffopt.store.source import HUB, VARIANT, Source, Sources, read
from diffopt.store.store import Store

FILE = "modelopt.pt"


def portable(model: Any, path: Path) -> None:
    """Write what `mto.restore` reads, from a backbone that `checkpoint.restore` gave.

    Raises StoreError for one that modelopt would not restore.
    """
    import modelopt.torch.opt as mto

    from diffopt.quantization.weight_scales import StaticBesideLowRank

    if odd := next((n for n, m in model.named_modules() if isinstance(m, StaticBesideLowRank)), None):
        raise StoreError(
            f"store export: Model-Optimizer cannot restore SVDQuant with searched scales or GPTQ (got {odd}); quantize "
            "with format.weights=max format.rounding=nearest, or copy the checkpoint alone with --bare"
        )
    mto.save(model, path)


@dataclass(frozen=True)
class Origin:
    """What a checkpoint in a store was made from."""

    pipeline: Pipeline
    sources: Sources

    def context(self, out: Path) -> Any:
        """Of a stage that writes to the directory `out`."""
        from diffopt.machine.environment import gpus
        from diffopt.stage import Context

        return Context(out, self.sources.pinned, self.sources.locate, "cuda" if gpus() else "cpu")

    @property
    def directory(self) -> Path:
        """The model's, downloaded where it is not here."""
        return self.sources.locate(PipelineFile.read(self.pipeline.path).source)


BARE = "copy the checkpoint alone with --bare"
"""What can be done without the model."""


def origin(store: Store, entry: Entry, source: str | None, adapters: Sequence[str] = (), without: str = BARE) -> Origin:
    """Find the pipeline of a checkpoint and its model's files; `source` and the files `adapters` name them where no run in
    reach says so. `without` says what can be done without them.

    Raises StoreError where they are not found.
    """
    found = store.entry("pipeline", entry.record["identity"]["inputs"]["pipeline"])
    if found is None:
        raise StoreError(
            f"store export: the pipeline of the checkpoint is gone (got {entry.fingerprint}); run the recipe again, "
            f"or {without}"
        )
    pipeline = Pipeline(found.path, found.fingerprint)
    pinned = PipelineFile.read(pipeline.path)
    sources = Sources(store.sources)
    models = [{"source": source, "lora": adapters}] if source or adapters else []
    models += _models(store, entry)
    if not _found(sources, pinned.source, _sources(pinned.source, models)):
        raise StoreError(
            f"store export: the model that the checkpoint was made from is not there (got {source or pinned.source}); "
            f"name it with --source=DIRECTORY, or {without}"
        )
    for row in pinned.lora:
        if not _found(sources, row.source, _adapters(row.source, (a for m in models for a in m.get("lora") or []))):
            raise StoreError(
                f"store export: an adapter that is fused into the model is not there (got {row.name!r}, {row.source}); "
                f"name it with --lora=FILE, or {without}"
            )
    return Origin(pipeline, sources)


def write(origin: Origin, entry: Entry, out: Path) -> None:
    """Write a checkpoint's portable file into the directory `out`."""
    from diffopt.machine.output import to_log

    context = origin.context(out)
    with to_log():  # what libraries say when they are imported too
        from diffopt.quantization.checkpoint import restore

        portable(restore(context, origin.pipeline, Checkpoint(entry.path, entry.fingerprint)), out / FILE)


def _found(sources: Sources, digest: str, candidates: Iterable[Source]) -> bool:
    """Whether one of them is what the digest is of; `sources` then knows where it lies."""
    for source in candidates:
        with suppress(ValueError):  # of parts that fit the pipeline no more
            if sources.digest(source) == digest:
                return True
    return False


def _sources(digest: str, named: Iterable[Mapping[str, Any]]) -> Iterator[Source]:
    """What may be the one: a commit of the hub, else what these were given for `model`: its source, or all of it."""
    if digest.startswith(HUB):
        name, _, variant = digest.removeprefix(HUB).partition(VARIANT)
        yield replace(read(name), variant=variant or None)
        return
    for given in named:
        with suppress(ValueError):
            yield read(given.get("base") or given["source"])
        with suppress(ValueError):  # of files that are gone, and where the source alone was named
            yield Model.model_validate(given).fetched


def _adapters(digest: str, named: Iterable[Any]) -> Iterator[Source]:
    """The same of adapters."""
    if digest.startswith("hub:"):
        repository, _, file = digest.removeprefix("hub:").partition(":")
        yield Source(repository, adapter=file)
        return
    for entry in named:
        with suppress(ValueError):
            yield Adapter.model_validate(entry).path


def _models(store: Store, entry: Entry) -> Iterator[dict[str, Any]]:
    """What the runs that made a checkpoint were given for `model`."""
    for run, artifacts in store.references():
        with suppress(OSError, ValueError, KeyError, DiffoptError):  # a run that is gone
            if (entry.kind, entry.fingerprint) in artifacts:
                yield _model(Path(run))


def _model(run: Path) -> dict[str, Any]:
    from diffopt.report.run_directory import Run

    found: dict[str, Any] = Run(run).config["model"]
    return found
