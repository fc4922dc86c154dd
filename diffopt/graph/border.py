"""Borders: what leaves reused blocks of a backbone, told from all else in the traced graph by an operator of our own."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from diffopt.caches.segment import Segment, States, states_of

BORDER = "Border"
"""The operator's type. It gives its first input; the second, where a change is reused, is what that is a change to."""
DOMAIN = "diffopt"


class _Border(torch.autograd.Function):
    """An operator with two names for one tensor, so that no pass of the exporter takes what crosses a border for the rest."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *entering: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def symbolic(g: Any, x: Any, *entering: Any) -> Any:
        return g.op(f"{DOMAIN}::{BORDER}", x, *entering).setType(x.type())


@contextlib.contextmanager
def bordered(segments: Sequence[Segment]) -> Iterator[None]:
    """Every tensor that leaves one of the segments is traced as the output of a border."""
    hooks = [hook for segment in segments for hook in _hooks(segment)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hooks(segment: Segment) -> Iterator[Any]:
    modules = [*segment.modules.values()]
    first, last = modules[0], modules[-1]
    states = states_of(first)
    entered: States = ()

    def enter(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal entered
        entered = states(args, kwargs)

    def leave(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        if not segment.residual:
            return tree_map_only(torch.Tensor, _Border.apply, output)
        pair = isinstance(output, tuple)
        left = output if pair else (None, output)
        found = tuple(x if x is None or e is None else _Border.apply(x, e) for x, e in zip(left, entered, strict=True))
        return found if pair else found[-1]

    if segment.residual:
        yield first.register_forward_pre_hook(enter, with_kwargs=True)
    yield last.register_forward_hook(leave)
