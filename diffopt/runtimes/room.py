"""The memory that a bench's weights take: estimated before, and said in a line where there is less. Imports no torch itself."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffopt import formats
from diffopt.errors import PlanError
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.model import BYTES
from diffopt.machine import environment
from diffopt.runtimes.contenders import weight_bytes
from diffopt.text import size

log = logging.getLogger("diffopt")


def estimate(bench: Sequence[str], pinned: PipelineFile, format: str | None) -> int:
    """Bytes of the backbones' weights, the most at once; text encoders, VAE and what calls take come on top."""
    packed = formats.method(format).weight_bits / 8 if format else BYTES[pinned.dtype]
    return weight_bytes(bench, pinned.parameters, BYTES[pinned.dtype], packed)


@contextmanager
def room(bench: Sequence[str], pinned: PipelineFile, format: str | None) -> Iterator[None]:
    """Say the estimate, and let a GPU that is full be a PlanError."""
    from torch import OutOfMemoryError

    need = size(estimate(bench, pinned, format))
    have = size(environment.gpus()[0]["memory"]) if environment.gpus() else None
    if have:
        log.info("bench: the backbones' weights take about %s of the GPU's %s, beside text encoders, VAE and calls", need, have)
    try:
        yield
    except OutOfMemoryError:
        raise PlanError(
            f"eval.bench: the GPU's {have} are full (got {', '.join(bench)}, whose weights take about {need}); name fewer, or "
            "lower eval.batch_size, model.height or model.width"
        ) from None
