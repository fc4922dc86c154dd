"""What a training takes of memory, reckoned before it starts. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from diffopt.files.layers import Layer
from diffopt.groups.model import BYTES
from diffopt.groups.train import OPTIMIZERS, Train, TrainView, trajectory
from diffopt.quantization.layers import without
from diffopt.text import size

BLOCK = 16
"""Weights of NVFP4 that share a scale."""
ROOM = 1.1
"""Of all of it, for activations and what the quantizers make: the least that was seen, with gradient checkpointing."""


@dataclass(frozen=True)
class Footprint:
    """Bytes by what they are for."""

    parts: dict[str, int]
    """On the device that computes."""
    offloaded: int
    """In RAM, of a teacher that is kept there."""

    calls: int = 1
    """Of the backbone whose activations are kept at once."""

    @property
    def total(self) -> int:
        return int(sum(self.parts.values()) * (1 + (ROOM - 1) * self.calls))

    def __str__(self) -> str:
        return ", ".join(f"{name} {size(n)}" for name, n in self.parts.items() if n)


def footprint(train: Train | TrainView, parameters: int, adapted: int, dtype: str, gpu: bool, shards: int = 1) -> Footprint:
    """Of a backbone with so many `parameters` in `dtype`, of which LoRA would train `adapted`; of each of so many processes
    that have their `shards` of all of it."""
    width = BYTES[train.weights or dtype]
    trained, of_trained = (adapted, 4) if train.lora else (parameters, width)  # adapters are FP32
    how = OPTIMIZERS[train.optimizer]
    parts = {
        "weights": parameters * width + (adapted * 4 if train.lora else 0),
        "gradients": trained * of_trained,
        "optimizer": round(trained * how.states * (how.bytes or of_trained)),
        "moving average": trained * of_trained if train.ema else 0,
    }
    if train.scales != "fixed":
        learned = 2 if train.scales == "dual" else 1
        began = train.scales == "learned"  # what is divided by stays as it was found
        each = width * (began + learned * (2 + bool(train.ema))) + learned * how.states * (how.bytes or width)
        parts["scales"] = round(parameters // BLOCK * each)
    teacher, calls = 0, 1
    if train.distillation:
        if (drawing := trajectory(train)) and not train.gradient_checkpointing:
            calls = drawing.calls
        kept = train.distillation.teacher
        teacher = parameters * (1 if kept.storage else BYTES[dtype])
        if not (kept.offload and gpu):
            parts["teacher"] = teacher
            teacher = 0
    return Footprint({name: n // shards for name, n in parts.items()}, teacher // shards, calls)


def adapted(train: Train | TrainView, layers: Sequence[Layer], kept: list[str]) -> int:
    """Numbers that LoRA would train, of these layers without those that the family keeps."""
    chosen, _ = _targets(train, layers, kept)
    return sum((x.shape[0] + x.shape[1]) * train.lora.rank for x in chosen) if train.lora else 0


def share_trained(train: Train | TrainView, layers: Sequence[Layer], kept: list[str]) -> float:
    """Of the linear layers those whose inputs the gradient needs for sure: all, or what LoRA adapts."""
    chosen, linear = _targets(train, layers, kept)
    return len(chosen) / max(1, len(linear)) if train.lora else 1.0


def _targets(train: Train | TrainView, layers: Sequence[Layer], kept: list[str]) -> tuple[list[Layer], list[Layer]]:
    """The linear layers that LoRA adapts, and all."""
    globs = train.lora.targets if train.lora else []
    linear = [x for x in without(layers, kept) if x.kind == "linear"]
    return [x for x in linear if any(fnmatch(x.name, glob) for glob in globs)], linear
