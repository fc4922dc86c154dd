"""A folder that leaves the store: the backbones as a way out has them, the rest of the pipeline, the card, the licence."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffopt.artifact import Checkpoint, NativeCheckpoint, Pipeline
from diffopt.errors import StoreError
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.components import ComponentsFile
from diffopt.files.export import ExportFile, Written
from diffopt.files.layers import read_layers
from diffopt.files.pipeline import PipelineFile
from diffopt.files.training import TrainingFile
from diffopt.machine.output import to_log
from diffopt.report.weight_bytes import weight_bytes
from diffopt.shipping import licence, others, samples
from diffopt.shipping.evidence import evidence, runs_of
from diffopt.shipping.subject import Subject
from diffopt.shipping.ways import Way
from diffopt.stage import Context
from diffopt.store.entry import Entry
from diffopt.store.store import Store
from diffopt.text import size

README = "README.md"
WEIGHTS = "*.safetensors"
SHARD = "10GB"
"""Largest file, as diffusers splits weights."""
SPARE = 1 << 20
"""Bytes for the card, its pictures and the licence."""


@dataclass(frozen=True, kw_only=True)
class Shipment:
    way: Way
    store: Store
    pipeline: Pipeline
    checkpoint: Entry
    """What was scored."""
    weights: Entry | None
    """An artifact that has the weights as the way wants them; else they are made of the checkpoint."""
    model: str
    """What the base model is called."""
    source: Path | None
    """Its directory; None where it is not here."""
    context: Callable[[Path], Context]
    """Of a directory that something is written to."""
    whole: bool = True
    """Whether the rest of the pipeline goes along."""
    components: Entry | None = None
    """Text encoders in fewer bits, which the pictures were drawn with; of a file alone they are not written."""
    link: bool = False
    """Give its files a further name instead of copying them, where both are on one disk."""

    @property
    def pinned(self) -> PipelineFile:
        return PipelineFile.read(self.pipeline.path)

    @property
    def completes(self) -> bool:
        """Whether the rest of the pipeline is written: a file alone has no place for it, and random weights have none."""
        return self.whole and self.way.whole and self.pinned.weights != "random"

    @property
    def slim(self) -> Mapping[str, str]:
        """By name the formats of text encoders that are written in fewer bits."""
        if not (self.components and self.way.whole and (self.completes or self.weights)):
            return {}
        return {n: c.format for n, c in ComponentsFile.read(self.components.path).parts.items()}

    @property
    def bytes(self) -> int:
        """That it takes on disk, about: converted weights by their format's bits."""
        total = SPARE
        if self.weights:
            total += self.weights.bytes
        elif self.way.artifact is None:
            total += weight_bytes(self.pinned, None, [])
        else:
            head = CheckpointFile.read(self.checkpoint.path)
            total += weight_bytes(self.pinned, head, read_layers(self.pipeline.path))
        if self.completes and self.source and not self.link:
            total += sum(p.bytes for p in others.pieces(self.source, self.pinned, self.slim))
            total += self.components.bytes if self.components else 0
        return total

    def check_room(self, parent: Path) -> None:
        """Raises StoreError where the disk is too small."""
        free = shutil.disk_usage(next(p for p in (parent, *parent.parents) if p.exists())).free
        if self.bytes > free:
            advice = "; --backbone-only leaves the rest of the pipeline out" if self.completes else ""
            raise StoreError(
                f"store export: takes about {size(self.bytes)} (got {size(free)} free in {str(parent)!r}); "
                f"free some, or give a directory on another disk{advice}"
            )

    def write(self, out: Path, place: str) -> None:
        """Write all of it into the empty directory `out`, which the card calls `place`. Raises GateError for what the layout
        cannot say, naming the layer."""
        self._weights(out)
        taken = sum(p.stat().st_size for p in out.rglob(WEIGHTS) if p.parent.name not in self.slim)
        if self.completes:
            others.write(self.context(out), self.pipeline, out, self.link, self.slim)
        known = licence.of(self.source)
        for file in known.files:
            if not (out / file.name).exists():
                shutil.copyfile(file, out / file.name)
        self._card(out, known, taken, place)
        self._manifest(out)

    def _weights(self, out: Path) -> None:
        for name in self.slim:
            assert self.components is not None
            shutil.copytree(self.components.path / name, out / name)
        if self.weights:
            for name in sorted(self.weights.record["files"]):  # with its components, which are these
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.weights.path / name, out / name)
            return
        made = Checkpoint(self.checkpoint.path, self.checkpoint.fingerprint)
        context = self.context(out)
        with to_log():  # what libraries say when they are imported too
            if self.way.artifact is None:
                from diffopt.pipeline.open import by_name
                from diffopt.quantization.checkpoint import restore
                from diffopt.shipping import plain

                for name, backbone in by_name(self.pinned, restore(context, self.pipeline, made)).items():
                    plain.write(out / name, backbone, SHARD, quantizers=self.way.kind == "modelopt")
            elif self.way.artifact is NativeCheckpoint:
                from diffopt.stages.pack import ShardView, pack

                pack.run(context, ShardView(max_shard_size=SHARD), self.pipeline, made)
            else:
                from diffopt.stages.deploy import LayoutView, deploy

                kind: Any = self.way.kind
                deploy.run(context, LayoutView(kind=kind, max_shard_size=SHARD), self.pipeline, made)

    def _card(self, out: Path, known: licence.Licence, taken: int, place: str) -> None:
        from diffopt.shipping.card import card

        drawn = self.components.fingerprint if self.components else None
        found = evidence(self.store, self.checkpoint.fingerprint, drawn)
        runs = runs_of(self.store, self.checkpoint.fingerprint)
        pictures = samples.written(samples.chosen(found), out)
        sharded = any(True for name in self.pinned.backbones for _ in (out / name).glob("*.index.json"))
        text = card(self.subject(known, taken, place, sharded), found, pictures, runs[0] if runs else None)
        (out / README).write_text(text, encoding="utf-8")

    def subject(self, known: licence.Licence, taken: int, place: str, sharded: bool = False) -> Subject:
        trained = self.checkpoint.path / TrainingFile.NAME
        lineage = {self.pipeline.kind: self.pipeline.fingerprint, self.checkpoint.kind: self.checkpoint.fingerprint}
        lineage |= {e.kind: e.fingerprint for e in (self.weights, self.components) if e}
        return Subject(
            way=self.way,
            pinned=self.pinned,
            head=CheckpointFile.read(self.checkpoint.path),
            training=TrainingFile.read(self.checkpoint.path) if trained.is_file() else None,
            made=(self.weights or self.checkpoint).record["provenance"],
            lineage=lineage,
            licence=known,
            model=self.model,
            bytes=taken,
            whole=self.completes,
            place=place,
            sharded=sharded,
            slim=self.slim,
        )

    def _manifest(self, out: Path) -> None:
        made = {e.kind: e.fingerprint for e in (self.checkpoint, self.weights, self.components) if e}
        files = {str(p.relative_to(out)): _written(p) for p in sorted(out.rglob("*")) if p.is_file()}
        for name, own in self.weights.record["files"].items() if self.weights else ():
            if files[name].sha256 != own["sha256"]:
                assert self.weights is not None
                raise self.weights.changed(name)
        ExportFile(
            way=self.way.name,
            source=self.pinned.source,
            artifacts={self.pipeline.kind: self.pipeline.fingerprint, **made},
            whole=self.completes,
            files=files,
        ).write(out)


def _written(path: Path) -> Written:
    with path.open("rb") as file:
        return Written(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def differs(folder: Path) -> str | None:
    """What of a folder is not as it was written, its card aside, which is to be edited; None where all is."""
    head = ExportFile.read(folder)
    for name, made in head.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if name != README and _written(path) != made:
            return f"{name} was changed"
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    return next((f"{name} was added" for name in sorted(there - {*head.files, ExportFile.NAME})), None)
