"""Memory of a piece of work: the most that it takes in RAM and on the GPU, and its return when the work is done."""

import gc
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOM, SPARE = 1.15, 3 << 30
"""A model is given so many times its weights, and bytes on top, for what it computes; else it does not fit."""

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def peaks() -> Iterator[dict[str, int]]:
    """Yields a dict that has, when the block is left, `ram` and on a GPU machine `gpu`: the peaks within it in bytes.

    Linux only: where the kernel does not tell, the dict stays empty. A GPU's peak is that of torch's allocator.
    """
    found: dict[str, int] = {}
    with suppress(OSError):  # where it cannot be reset, the peak is the process's so far
        RESET.write_text("5")  # man proc_pid_clear_refs
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()
    try:
        yield found
    finally:
        found |= peak()


def peak() -> dict[str, int]:
    """The most of this process since it was last reset, in bytes: `ram`, and `gpu` where it has one."""
    found = {}
    if STATUS.is_file() and (match := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())):
        found["ram"] = int(match[1]) << 10
    if cuda := _cuda():
        found["gpu"] = int(cuda.max_memory_allocated())
    return found


def release() -> None:
    """Free what nobody refers to any more: models have reference cycles, and torch keeps what a GPU has given it."""
    _forget_failed_imports()
    gc.collect()
    if cuda := _cuda():
        cuda.empty_cache()


def _forget_failed_imports() -> None:
    """The frames of the errors that PuLP keeps, the solver library that modelopt imports, of solvers that are not there.

    Whatever step was the first to import modelopt is among those frames, with the model that it had: 22 GiB of FLUX.1-dev in
    BF16 would stay until the process ends.
    """
    for name, module in [*sys.modules.items()]:
        for solver in vars(module).values() if name.startswith("pulp.apis") else ():
            if isinstance(error := getattr(solver, "err", None), BaseException):
                error.__traceback__ = None


def _cuda() -> Any:
    """torch.cuda where the work has loaded and used it; it is not loaded to ask."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_available() and torch.cuda.is_initialized() else None
