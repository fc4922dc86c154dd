"""What a card is about: a checkpoint as it is written for one way out, and where it came from."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from diffopt import models
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.pipeline import PipelineFile
from diffopt.files.training import TrainingFile
from diffopt.groups.model import BYTES
from diffopt.shipping.consumers import Load
from diffopt.shipping.licence import Licence
from diffopt.shipping.ways import Way
from diffopt.store.source import HUB, VARIANT

LABELS = {
    "fp8": "FP8", "int8": "INT8", "int8_sq": "INT8 SmoothQuant", "int4_awq": "INT4 AWQ", "w4a8_awq": "W4A8 AWQ",
    "nvfp4": "NVFP4", "nvfp4_svdquant": "NVFP4 SVDQuant", "mxfp8": "MXFP8", "nf4": "NF4", "auto": "a format for every layer",
}  # fmt: skip


def called(pinned: PipelineFile, source: str) -> str:
    """What a base model is called: a repository of the hub, else the name of the directory that a user or a run gave."""
    if pinned.source.startswith(HUB):
        return pinned.source.removeprefix(HUB).partition(VARIANT)[0].partition("@")[0]
    return Path(source.rstrip("/")).name.rpartition(":")[2] or pinned.family


@dataclass(frozen=True, kw_only=True)
class Subject:
    way: Way
    pinned: PipelineFile
    head: CheckpointFile
    training: TrainingFile | None
    made: Mapping[str, Any]
    """Its record's provenance: versions of packages, and the machine."""
    lineage: Mapping[str, str]
    """Fingerprints by kind."""
    licence: Licence
    model: str
    """What the base model is called, for people: a repository of the hub, or a directory's name."""
    bytes: int
    """Of the files of all backbones."""
    whole: bool
    """Whether the rest of the pipeline is there."""
    place: str = "DIR"
    """What stands for the folder in code."""
    sharded: bool = False
    """Whether a backbone's weights are several files."""
    slim: Mapping[str, str] = field(default_factory=dict)
    """By name the formats of text encoders whose weights are in fewer bits."""

    @property
    def title(self) -> str:
        return f"{self.model.rpartition('/')[2]} in {self.format}"

    @property
    def format(self) -> str:
        return LABELS.get(self.head.format, self.head.format)

    @cached_property
    def hub(self) -> tuple[str, str] | None:
        """Repository and commit of the base model on the hub; None of a directory."""
        if not self.pinned.source.startswith(HUB):
            return None
        repository, _, commit = self.pinned.source.removeprefix(HUB).partition(VARIANT)[0].partition("@")
        return repository, commit

    @property
    def formats(self) -> Mapping[str, int]:
        """Quantized layers by format, the most first."""
        each = self.head.mix or dict.fromkeys(self.head.layers, self.head.format)
        return dict(Counter(each[n] for n in self.head.layers).most_common())

    @property
    def source_bytes(self) -> int:
        return self.pinned.parameters * BYTES.get(self.pinned.dtype, 4)

    @property
    def task(self) -> str:
        """As the hub names it."""
        family = models.of(self.pinned)
        return "image-to-video" if family.animates else "text-to-video" if family.frame_step else "text-to-image"

    @property
    def load(self) -> Load:
        family = models.of(self.pinned)
        repository = self.hub[0] if self.hub else "BASE"
        return Load(
            way=self.way,
            formats=frozenset(self.formats),
            backbones=self.pinned.backbones,
            backbone_class=family.backbone_class,
            pipeline=family.pipeline,
            dtype=self.pinned.dtype,
            share_scales=self.head.share_scales,
            whole=self.whole,
            place=self.place,
            base=repository,
            sharded=self.sharded,
        )
