"""accelerate for one training in this process: what it remembers of it is forgotten when it ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from diffopt.groups.train import TrainView

PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


@contextmanager
def session(train: TrainView, device: str, logs: Path) -> Iterator[Accelerator]:
    """An Accelerator whose trackers write below `logs`."""
    logs.mkdir(parents=True, exist_ok=True)
    _forget()
    accelerator = Accelerator(
        mixed_precision=PRECISION[train.precision],
        cpu=device == "cpu",
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
