"""`diffopt store ls`: every artifact on a line, with the model and the recipe that it belongs to."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from diffopt.artifact import Artifact, Pipeline
from diffopt.errors import DiffoptError, StoreError
from diffopt.files.json_file import loaded
from diffopt.files.pipeline import PipelineFile
from diffopt.files.run import RunFile
from diffopt.groups.validate import nearest
from diffopt.store.entry import RECORD, Entry
from diffopt.store.files import content
from diffopt.store.store import Store
from diffopt.text import size

HEAD = ("kind", "id", "size", "made in", "date", "stage", "model", "recipe")
RIGHT = (2, 3)
"""Columns of numbers."""
NONE = "-"
"""Of an artifact that no existing run refers to, and of one that is made of no model."""


@dataclass(frozen=True)
class Referring:
    """A run that exists, and what it refers to."""

    directory: Path
    artifacts: frozenset[tuple[str, str]]

    @cached_property
    def content(self) -> RunFile | None:
        try:
            return RunFile.of(loaded(content(self.directory / RunFile.NAME)))
        except (OSError, ValueError, DiffoptError):  # it still runs, or was stopped
            return None

    @property
    def recipe(self) -> str:
        """As in `outputs/runs/RECIPE/DATE` where it has written nothing yet."""
        return self.content.name if self.content else self.directory.parent.name

    @property
    def model(self) -> str | None:
        """The source that it was given."""
        if self.content is None:
            return None
        from omegaconf import OmegaConf

        config = OmegaConf.create(self.content.config)
        # What was made of a model that came quantized is told by what that was made of: most of it is both's.
        found = OmegaConf.select(config, "model.base") or OmegaConf.select(config, "model.source")
        return None if found is None else str(found)


class Listing:
    def __init__(self, store: Store, kind: str | None):
        known = {k.kind for k in Artifact.__subclasses__()} | {e.kind for e in store.entries()}
        if kind is not None and kind not in known:
            raise StoreError(f"store ls: no such kind (got {kind!r}); {nearest(kind, known)}")
        self.store = store
        self.shown = store.entries(kind)
        self.all = {e.fingerprint: e for e in store.entries()}
        self.runs = [
            Referring(Path(run), frozenset((k, fp) for k, fp in artifacts))
            for run, artifacts in store.references()
            if Path(run).is_dir()
        ]
        self.pinned = {found for artifacts in store.pins().values() for found in artifacts}
        self._models: dict[str, str] = {}

    def lines(self) -> list[str]:
        rows = [HEAD, *(self._row(e) for e in self.shown)]
        if self.pinned:
            kept = ["pinned" if (e.kind, e.fingerprint) in self.pinned else "" for e in self.shown]
            rows = [(*row, mark) for row, mark in zip(rows, ["kept", *kept], strict=True)]
        wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = [
            "  ".join(f"{x:>{w}}" if i in RIGHT else f"{x:{w}}" for i, (x, w) in enumerate(zip(row, wide, strict=True)))
            for row in rows
        ]
        total = f"{len(self.shown)} artifacts, {size(sum(e.bytes for e in self.shown))}"
        return [*(line.rstrip() for line in table if self.shown), total]

    def _row(self, entry: Entry) -> tuple[str, ...]:
        made, date = entry.record["provenance"], datetime.fromtimestamp((entry.path / RECORD).stat().st_mtime)
        return (
            entry.kind,
            entry.fingerprint,
            size(entry.bytes),
            f"{seconds:.1f} s" if (seconds := made.get("seconds")) is not None else NONE,
            f"{date:%Y-%m-%d %H:%M}",
            entry.record["identity"].get("stage", NONE),
            self._model(entry),
            self._recipe(entry),
        )

    def _recipe(self, entry: Entry) -> str:
        found = list(dict.fromkeys(r.recipe for r in self._referring(entry)))
        return f"{found[0]} +{len(found) - 1}" if len(found) > 1 else found[0] if found else NONE

    def _referring(self, entry: Entry) -> Sequence[Referring]:
        """The youngest first, as runs are called by their date."""
        mine = (r for r in self.runs if (entry.kind, entry.fingerprint) in r.artifacts)
        return sorted(mine, key=lambda r: r.directory.name, reverse=True)

    def _model(self, entry: Entry) -> str:
        pipeline = self._pipeline(entry, set())
        if pipeline is None:
            return next((m for r in self._referring(entry) if (m := r.model)), NONE)
        if pipeline.fingerprint not in self._models:
            self._models[pipeline.fingerprint] = self._source(pipeline)
        return self._models[pipeline.fingerprint]

    def _pipeline(self, entry: Entry, seen: set[str]) -> Entry | None:
        """What an artifact was made of, perhaps through others."""
        if entry.kind == Pipeline.kind:
            return entry
        for fingerprint in sorted(entry.inputs - seen):
            seen.add(fingerprint)
            if (made := self.all.get(fingerprint)) and (found := self._pipeline(made, seen)):
                return found
        return None

    def _source(self, pipeline: Entry) -> str:
        """A repository of the hub, what a run has called a directory, or at least the family."""
        pinned: Any = None
        with suppress(OSError, ValueError, TypeError, DiffoptError):
            pinned = PipelineFile.read(pipeline.path)
        if pinned and pinned.source.startswith("hub:"):
            return str(pinned.source.removeprefix("hub:").partition("@")[0])
        named = next((m for r in self._referring(pipeline) if (m := r.model)), None)
        return named or (f"{pinned.family} ({pinned.source})" if pinned else NONE)
