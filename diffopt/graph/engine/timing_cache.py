"""What TensorRT learned of kernels' speed, kept from build to build. TensorRT-RTX times nothing, so it has none."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffopt.machine.environment import device


@dataclass(frozen=True)
class TimingCache:
    file: Path | None
    """None where nothing is kept."""

    def keep(self, config: Any) -> None:
        """Write what the build learned, whole or not at all; another process may have written meanwhile."""
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        draft.write_bytes(memoryview(config.get_timing_cache().serialize()))
        os.replace(draft, self.file)


def opened(trt: Any, config: Any, directory: Path | None) -> TimingCache:
    """Give the builder the timings of this version on this GPU, and say where they are to be kept."""
    if directory is None or trt.__name__ == "tensorrt_rtx":
        return TimingCache(None)
    gpu = "".join(c if c.isalnum() or c == "." else "-" for c in device())
    file = directory / f"{trt.__name__}-{trt.__version__}-{gpu}.cache"
    known = file.read_bytes() if file.is_file() else b""
    config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    return TimingCache(file)
