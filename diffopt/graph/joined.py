"""A backbone that gives several predictions, as a graph gives them: in one tensor."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch


@contextmanager
def joined(backbone: torch.nn.Module, join: Callable[[Sequence[torch.Tensor]], torch.Tensor] | None) -> Iterator[None]:
    """Within it the backbone, called without `return_dict`, gives one tensor; None leaves it as it is."""
    if join is None:
        yield
        return
    hook = backbone.register_forward_hook(lambda _module, _inputs, output: (join(output),))
    try:
        yield
    finally:
        hook.remove()
