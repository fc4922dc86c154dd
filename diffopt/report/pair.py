"""What a run has of one prompt: its pictures, or its videos, and what the metrics say of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffopt.files.metrics import MetricResult


@dataclass(frozen=True)
class VideoPaths:
    frames: list[Path]
    """That are judged."""
    plays: Path
    """What a browser plays."""


@dataclass(frozen=True)
class RunPair:
    number: int
    """Its prompt's place, from 0."""
    prompt: str
    seed: int
    files: Mapping[str, Path]
    """By kind, `reference`, `candidate`, a further candidate's name, `difference`, and the pictures of its prompt, as
    `given image`: those that are there."""
    same: bool
    """Whether candidate and reference are identical."""
    values: Mapping[str, float]
    """By metric; without those that judge whole sets."""
    theirs: Mapping[str, float]
    """The same of the reference."""
    compared: Mapping[str, Mapping[str, float]]
    """The same of the further candidates, by name."""
    videos: Mapping[str, VideoPaths]
    """By kind; of pictures none."""

    def worth(self, name: str) -> float:
        """In the metric `name`, beside the reference where that has a value of its own."""
        return self.values[name] - self.theirs.get(name, 0.0)


def values_of(metrics: Mapping[str, MetricResult], i: int) -> dict[str, float]:
    """Of one prompt, by metric; without those that judge whole sets."""
    return {name: m.values[i] for name, m in metrics.items() if m.values is not None}


def identical(ours: Path, theirs: Path) -> bool:
    """Sizes first: a sweep has thousands of pictures, of a megabyte each."""
    return ours.stat().st_size == theirs.stat().st_size and ours.read_bytes() == theirs.read_bytes()
