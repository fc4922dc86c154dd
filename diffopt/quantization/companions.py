"""What stages keep of one pass of the model over a chunk of prompts, each its own artifact: drawing is what takes the time."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from diffopt.artifact import Artifact
from diffopt.errors import GateError
from diffopt.quantization import hessian, histogram
from diffopt.quantization.hessian import correlated
from diffopt.quantization.histogram import counted

HESSIANS, HISTOGRAMS = "hessians.safetensors", "histograms.safetensors"
Tensors = dict[str, torch.Tensor]
Watch = Callable[[torch.nn.Module], AbstractContextManager[Tensors]]
WATCHES: dict[str, tuple[str, Watch]] = {"correlate": (HESSIANS, correlated), "count": (HISTOGRAMS, counted)}
"""By stage the file that it keeps, and what fills it while the backbone runs."""


def means(chunks: Iterable[Artifact]) -> Tensors:
    """Of the chunks of `correlate`, as hessian.py has them; nothing of none."""
    parts = [load_file(c.path / HESSIANS) for c in chunks]
    return hessian.merge(parts) if parts else {}


def sizes(chunks: Iterable[Artifact]) -> Tensors:
    """Of the chunks of `count`, as histogram.py has them; nothing of none."""
    parts = [load_file(c.path / HISTOGRAMS) for c in chunks]
    return histogram.merge(parts) if parts else {}


@contextmanager
def keeping(backbone: torch.nn.Module, outs: Mapping[str, Path]) -> Iterator[None]:
    """Within it the backbone is watched for these stages, by name; each artifact is written where the block ends.

    Raises GateError for inputs that no scale can be found of.
    """
    with ExitStack() as stack:
        found = {name: stack.enter_context(WATCHES[name][1](backbone)) for name in outs}
        yield
    for name, tensors in found.items():
        kept = {n: x.cpu().contiguous() for n, x in sorted(tensors.items())}
        if broken := [n for n, x in kept.items() if not x.isfinite().all()]:
            raise GateError(f"{name}: {broken[0]} saw inf or NaN (got {len(broken)} such); set another model.dtype")
        save_file(kept, outs[name] / WATCHES[name][0])
