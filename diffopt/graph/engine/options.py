"""How a plan is to be built."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    level: int
    """TensorRT's effort, 0 to 5."""
    refit: bool = False
    weight_streaming: bool = False
    workspace: int | None = None
    """Bytes of scratch memory that a layer may take; None for as much as the builder likes."""
    timings: Path | None = None
    """A directory, perhaps not there yet, where the timings of kernels are kept from build to build."""
