"""accelerate for one training in this process: what it remembers of it is forgotten when it ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs

from diffopt.groups.train import TrainView
from diffopt.training.shards import plugin

PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


@contextmanager
def session(train: TrainView, device: str, logs: Path, shards: bool = False) -> Iterator[Accelerator]:
    """An Accelerator whose trackers write below `logs`, of all processes where there are several; with `shards` it cuts models.

    Of shards it is told no precision: it would make all weights float32, so that the loop casts by itself.
    """
    logs.mkdir(parents=True, exist_ok=True)
    _forget()
    accelerator = Accelerator(
        mixed_precision="no" if shards else PRECISION[train.precision],
        cpu=device == "cpu",
        fsdp_plugin=plugin() if shards and device != "cpu" else None,
        # A weight that has no part in a loss, as that of the blocks alone, has no gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        log_with=[*train.trackers] or None,
        project_dir=str(logs),
        step_scheduler_with_optimizer=False,
    )
    if train.trackers:
        accelerator.init_trackers("training")
    try:
        yield accelerator
    finally:
        accelerator.end_training()
        accelerator.free_memory()
        _forget()


def _forget() -> None:
    """accelerate shares its state among all Accelerators of a process, whose precision is then the first one's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
