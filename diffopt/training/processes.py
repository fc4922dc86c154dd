"""How many processes train, and how they share the work. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffopt import models
from diffopt.errors import PlanError
from diffopt.files.layers import Layer
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.train import Train, TrainView
from diffopt.machine.environment import ram
from diffopt.training.footprint import Footprint, adapted, footprint
from diffopt.training.machines import rendezvous


@dataclass(frozen=True)
class Processes:
    how: Literal["single", "ddp", "fsdp"]
    each: int
    """On one machine."""
    machines: int = 1
    rendezvous: str | None = None

    @property
    def total(self) -> int:
        return self.each * self.machines


def arrange(train: Train | TrainView, gpus: Sequence[dict[str, Any]], need: Footprint) -> Processes:
    """What `train.parallel` and `train.processes` mean on this machine for a training of such a footprint.

    Raises PlanError for what its GPUs or the batch do not allow.
    """
    each = started(train, len(gpus))
    if train.parallel is None:
        return Processes("single", each)
    if gpus and each > len(gpus):
        raise PlanError(
            f"train.processes: are more than the GPUs that are there, {len(gpus)} (got {each}); set train.processes={len(gpus)}"
        )
    total = each * train.machines
    if train.batch_size % total:
        raise PlanError(
            f"train.batch_size: is not shared evenly by {total} processes (got {train.batch_size}); give a multiple of {total}"
        )
    if total == 1:
        return Processes("single", 1)
    how = train.parallel
    if how == "auto":
        have = min((g["memory"] for g in gpus), default=ram() // each)
        how = "ddp" if need.total <= have else "fsdp"
    if how == "fsdp":
        _check_shards(train)
    return Processes(how, each, train.machines, rendezvous(train))


def started(train: Train | TrainView, gpus: int) -> int:
    """Processes on each machine: those that are asked for, or as many of its GPUs as share the batch evenly; one on a CPU."""
    if train.parallel is None:
        return 1
    return train.processes or max((n for n in range(1, gpus + 1) if train.batch_size % (n * train.machines) == 0), default=1)


def _check_shards(train: Train | TrainView) -> None:
    if train.optimizer == "adafactor":
        raise PlanError(
            "train.optimizer: adafactor wants whole rows and columns, which no process has under fsdp (got adafactor); "
            "set train.optimizer=adamw8bit, or train.parallel=ddp"
        )
    if train.precision == "float16":
        raise PlanError(
            "train.precision: gradients in shards are not scaled, as those of float16 must be (got float16); set "
            "train.precision=bfloat16, or train.parallel=ddp"
        )
    if train.distillation and train.distillation.teacher.storage:
        raise PlanError(
            "train.distillation.teacher.storage: a teacher in shards keeps the model's precision (got "
            f"{train.distillation.teacher.storage}); set it to null, and "
            "train.distillation.teacher.offload=true where the shards do not fit"
        )


def arranged(
    train: Train | TrainView, pinned: PipelineFile, layers: Sequence[Layer], gpus: Sequence[dict[str, Any]]
) -> tuple[Processes, Footprint]:
    """Who trains this pipeline of these layers on a machine with these GPUs, and what each of them takes.

    Raises PlanError as `arrange` does.
    """
    kept = models.of(pinned).kept(pinned.blocks, pinned.backbones)
    about = train, pinned.parameters, adapted(train, layers, kept), pinned.dtype, bool(gpus)
    whole = footprint(*about)
    processes = arrange(train, gpus, whole)
    return processes, footprint(*about, shards=processes.total) if processes.how == "fsdp" else whole
