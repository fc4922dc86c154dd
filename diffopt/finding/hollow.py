"""A pipeline's models without their weights: they give tensors of the right shape, and compute nothing."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.utils._pytree import tree_map

from diffopt.errors import pass_on

SMALL = 200_000_000
"""Weights of a model that is made with random ones where it cannot go without any."""
TINY = 20_000_000
"""Weights of one that computes faster than it is told what it would compute."""

Watch = Callable[[tuple[Any, ...], dict[str, Any]], Callable[[Any], None]]


def hollow(empty: torch.nn.Module, make: Callable[[], torch.nn.Module], watch: Watch | None = None) -> torch.nn.Module:
    """`empty`, which lies on the meta device, as one that lies on the CPU and gives random numbers of the shapes and dtypes
    that it computes there. `watch` is told each call beforehand, and what it gives is told what came of it.

    A forward that looks at numbers cannot run on the meta device: then `make` gives one with weights in its place, if it is
    small. Raises what that raises.
    """
    kind, weights = type(empty), sum(p.numel() for p in empty.parameters())
    real = [make()] if weights < TINY else []
    forward = empty.forward

    def computed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not real:
            try:
                return tree_map(_number, forward(*tree_map(_meta, args), **tree_map(_meta, kwargs)))
            except Exception as e:  # another's code, which asks meta tensors for their numbers, or takes inputs that do not fit
                pass_on(e)
                if weights > SMALL:
                    raise
                real.append(make())
        return real[0](*args, **kwargs)

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        told = watch(args, kwargs) if watch else None
        with torch.no_grad():
            found = computed(args, kwargs)
        if told:
            told(found)
        return found

    for part in empty.children():
        if isinstance(part, torch.nn.BatchNorm2d):  # of FLUX.2's VAE, whose numbers its pipelines take for themselves
            part.to_empty(device="cpu").reset_running_stats()

    # Of the same name in full, by which transformers finds what a class can record.
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    placed = type(kind.__name__, (kind,), {"device": property(lambda _self: torch.device("cpu")), **names})
    empty.__class__ = placed
    empty.forward = run
    return empty


def _meta(x: Any) -> Any:
    return x.to("meta") if isinstance(x, torch.Tensor) else x


def _number(x: Any) -> Any:
    """Random ones: which tensor comes from which is told by them."""
    if not isinstance(x, torch.Tensor):
        return x
    if x.is_floating_point():
        return torch.randn(x.shape).to(x.dtype)
    return torch.zeros(x.shape, dtype=x.dtype)
