"""Borders: what modules of a backbone give, told from all else in the traced graph by an operator of our own."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

BORDER = "Border"
"""The operator's type. It gives its first input; what a stretch was given is its second one where that counts."""
DOMAIN = "diffopt"

States = tuple[torch.Tensor | None, ...]


@dataclass(frozen=True)
class Stretch:
    """Modules of a backbone one after the other, of which a step can reuse what the last one gave."""

    first: str
    last: str
    entering: Callable[[tuple[Any, ...], dict[str, Any]], States] | None = None
    """For reuse of what the stretch added: the states among the first one's arguments, as the last one gives them, with None
    for those that it does not give."""


class _Border(torch.autograd.Function):
    """An operator with two names for one tensor, so that no pass of the exporter takes what crosses a border for the rest."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *entering: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def symbolic(g: Any, x: Any, *entering: Any) -> Any:
        return g.op(f"{DOMAIN}::{BORDER}", x, *entering).setType(x.type())


@contextlib.contextmanager
def bordered(backbone: torch.nn.Module, stretches: Sequence[Stretch]) -> Iterator[None]:
    """Every tensor that leaves one of the stretches is traced as the output of a border."""
    hooks: list[Any] = []
    for stretch in stretches:
        hooks += _hooks(backbone, stretch)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hooks(backbone: torch.nn.Module, stretch: Stretch) -> Iterator[Any]:
    entered: States = ()
    states = stretch.entering

    def enter(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal entered
        assert states is not None
        entered = states(args, kwargs)

    def leave(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        if states is None:
            return tree_map_only(torch.Tensor, _Border.apply, output)
        pair = isinstance(output, tuple)
        left = output if pair else (None, output)
        found = tuple(x if x is None or e is None else _Border.apply(x, e) for x, e in zip(left, entered, strict=True))
        return found if pair else found[-1]

    if states is not None:
        yield backbone.get_submodule(stretch.first).register_forward_pre_hook(enter, with_kwargs=True)
    yield backbone.get_submodule(stretch.last).register_forward_hook(leave)
