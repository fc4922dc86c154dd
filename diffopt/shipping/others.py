"""The parts of a pipeline beside its backbones: scheduler, tokenizers, text encoders, VAE, as they were when it was scored."""

import json
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from diffopt import models
from diffopt.artifact import Pipeline
from diffopt.files.pipeline import PipelineFile
from diffopt.machine.output import to_log
from diffopt.models.parts import INDEX, SHARDS, WEIGHTS, Parts
from diffopt.pipeline.foreign import config_of
from diffopt.stage import Context

SCHEDULER = "scheduler"
OLD = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data")
"""Endings of the same weights in forms that are not read where there are safetensors."""


@dataclass(frozen=True)
class Piece:
    """One file that is copied."""

    source: Path
    name: str
    """In the folder that is written."""
    variant: str | None
    """What is taken out of the names: weights are written under their plain ones."""

    @property
    def bytes(self) -> int:
        return self.source.stat().st_size

    def write(self, out: Path, link: bool) -> None:
        """Copy it, or where `link` and both are on one disk give the file a further name."""
        there = out / self.name
        there.parent.mkdir(parents=True, exist_ok=True)
        if self.variant and SHARDS.fullmatch(self.source.name):
            there.write_text(self.source.read_text().replace(f".{self.variant}", ""))
            return
        if link:
            try:
                os.link(self.source.resolve(), there)
                return
            except OSError:
                there.unlink(missing_ok=True)  # another disk, or one without links
        shutil.copyfile(self.source, there)


def pieces(directory: Path, pinned: PipelineFile, there: Collection[str] = ()) -> list[Piece]:
    """What is copied from the model's directory beside the parts `there`; of random weights nothing, which it does not have."""
    if pinned.weights == "random":
        return []
    parts = Parts(directory, models.of(pinned), pinned.variant)
    changed = {*pinned.backbones, *there, *rewritten(parts, pinned), *([SCHEDULER] if pinned.scheduler else [])}
    return [piece for name in parts.named if name not in changed for piece in _of(parts, name)]


def fused(pinned: PipelineFile) -> list[str]:
    """Parts beside the backbones that an adapter is fused into."""
    return sorted({name for adapter in pinned.lora for name in adapter.hits} - {*pinned.backbones})


def rewritten(parts: Parts, pinned: PipelineFile) -> list[str]:
    """Those, and what is in files under its makers' names, or in FP8."""
    return sorted({*fused(pinned), *(n for n in parts.named if n not in pinned.backbones and parts.read_here(n))})


def _of(parts: Parts, name: str) -> Iterator[Piece]:
    folder, variant, weights = parts.directory / name, parts.variant_of(name), {*parts.weights(name)}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        inside = path.relative_to(folder)
        if any(p.startswith(".") for p in inside.parts):
            continue
        listing = SHARDS.fullmatch(path.name)
        others = listing["variant"] != variant if listing else bool(WEIGHTS.fullmatch(path.name)) and path not in weights
        if others or (weights and path.suffix in OLD):
            continue
        plain = path.name.replace(f".{variant}", "", 1) if variant else path.name
        yield Piece(path, str(Path(name) / inside.with_name(plain)), variant)


def write(ctx: Context, pipeline: Pipeline, out: Path, link: bool, there: Collection[str] = ()) -> None:
    """Write the parts and the index into a folder that has the backbones, and those of `there`."""
    pinned = PipelineFile.read(pipeline.path)
    directory = ctx.locate(pinned.source)
    for piece in pieces(directory, pinned, there):
        piece.write(out, link)
    index = dict(config_of(directory / INDEX))
    index.pop("_name_or_path", None)  # a path of the machine that made it
    parts = Parts(directory, models.of(pinned), pinned.variant)
    for name in parts.left_out:
        if name in index:
            index[name] = [None, None]
    with to_log():
        if pinned.scheduler:
            from diffopt.pipeline.scheduler import scheduler

            scheduler(directory, pinned.scheduler).save_pretrained(out / SCHEDULER)
            index[SCHEDULER] = ["diffusers", pinned.scheduler]
        if names := [n for n in rewritten(parts, pinned) if n not in there]:
            from diffopt.pipeline.open import open_texts, open_vae

            whole = open_texts(ctx, pipeline) if {*names} - {"vae"} else None
            for name in names:
                (open_vae(ctx, pipeline) if name == "vae" else getattr(whole, name)).save_pretrained(out / name)
    (out / INDEX).write_text(json.dumps(index, indent=2) + "\n")
