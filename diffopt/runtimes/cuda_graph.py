"""A backbone's call as one CUDA graph: the GPU is given its kernels at once, where launching each takes longer than it runs."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

log = logging.getLogger("diffopt")

MOST = 4
"""Kinds of calls that are captured; each holds memory of its own. Pipelines make one or two."""
WARM = 2
"""Calls before a capture: they compile, tune, and make handles, which a capture must not."""


@dataclass(frozen=True)
class Captured:
    graph: torch.cuda.CUDAGraph
    given: list[torch.Tensor]
    """Where the graph reads its inputs."""
    made: Any
    """What the call returned: where the graph writes."""


class Graphed:
    """Calls `forward`, each kind of call from a CUDA graph: one kind has the same shapes and other arguments.

    What it returns is a copy, since pipelines keep one call's result while they make the next. A kind too many is called as
    ever, and is said once.
    """

    def __init__(self, forward: Callable[..., Any]):
        self.forward = forward
        self.captured: dict[Any, Captured] = {}
        self.pool: Any = None
        self.full = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
        key = (str(spec), tuple(_kind(x) for x in leaves))
        found = self.captured.get(key)
        if found is None:
            if len(self.captured) >= MOST:
                if not self.full:
                    log.info("CUDA graphs: more than %d kinds of calls; the others run without one", MOST)
                self.full = True
                return self.forward(*args, **kwargs)
            found = self.captured[key] = self._capture(leaves, spec)
        for place, value in zip(found.given, tensors, strict=True):
            place.copy_(value)
        found.graph.replay()
        return pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, found.made)

    def _capture(self, leaves: list[Any], spec: Any) -> Captured:
        """Inputs on the CPU, as some timesteps are, go to the GPU: a graph reads no other memory."""
        places = [x.detach().clone().cuda() if isinstance(x, torch.Tensor) else x for x in leaves]
        args, kwargs = pytree.tree_unflatten(places, spec)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):
                self.forward(*args, **kwargs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            made = self.forward(*args, **kwargs)
        self.pool = self.pool or graph.pool()
        return Captured(graph, [x for x in places if isinstance(x, torch.Tensor)], made)


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.device.type
    return repr(leaf)
