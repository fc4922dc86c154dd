"""The most memory that a piece of work takes: of the process in RAM, and of torch on the GPU."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
        if STATUS.is_file() and (match := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())):
            found["ram"] = int(match[1]) << 10
        if cuda := _cuda():
            found["gpu"] = int(cuda.max_memory_allocated())


def _cuda() -> Any:
    """torch.cuda where the work has loaded and used it; it is not loaded to ask."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_available() and torch.cuda.is_initialized() else None
