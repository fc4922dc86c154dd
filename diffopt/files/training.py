"""`training.json`: what training a checkpoint has seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from diffopt.files.json_file import JsonFile


@dataclass(frozen=True)
class Validation:
    step: int
    score: float


@dataclass(frozen=True)
class TrainingFile(JsonFile):
    NAME = "training.json"
    SCHEMA = "diffopt.training/1"

    method: Literal["qat", "qad"]
    steps: int
    """Optimizer steps that were made: fewer than `asked` where it stopped early."""
    asked: int
    items: int
    """Of the data, without what is held for validation; so are `prompts`."""
    skipped: int
    prompts: int
    trained: int
    """Parameters."""
    metric: str | None
    """That was validated."""
    losses: Sequence[Mapping[str, float]]
    """Of each step: `step`, `loss`, its parts weighted, and the learning rate."""
    validations: tuple[Validation, ...]
    best: Validation | None
    teacher: str | None
    """sha256 of its weights, the same before and after; None without one."""
    parallel: str
    """single, ddp or fsdp."""
    seconds: Sequence[float]
    """Of each step."""
    peak_bytes: Sequence[Mapping[str, int]]
    """Of each process: `ram`, and `gpu` where it has one."""
    scales: str = "fixed"
    """Of the weights' blocks, as `train.scales` has it."""
