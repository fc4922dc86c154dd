"""Reused blocks side by side: what stands for all of them where they are not computed."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map

from diffopt.caches.policy import Reuse
from diffopt.caches.wrapper import Around
from diffopt.models.prompt_encoding import given_back

Select = Callable[[int], bool]
"""Whether blocks are reused at a denoising step, from 0."""

States = tuple[torch.Tensor | None, ...]
"""The text's and the picture's hidden states, or the picture's alone; of blocks that give two tensors, those two."""


class Place(NamedTuple):
    """Of a backbone call: the denoising step, the pass of it, and the call in that pass."""

    step: int
    pass_index: int
    call: int


class Kept(NamedTuple):
    step: int
    """At which it was computed."""
    what: Any
    """Output or residual. A copy: what uses a block's output may change it in place, and a CUDA graph writes over it."""


class Segment:
    """One or more blocks, each of which takes what the one before gave. Where a segment is reused its first block decides,
    the others pass on what they are given, and the last gives what was kept; so one copy serves them all."""

    def __init__(self, modules: Mapping[str, torch.nn.Module], reuses: Select, reuse: Reuse = "output"):
        self.modules = modules
        self.reuses = reuses
        self.residual = reuse == "residual"
        self.hits = self.misses = 0
        self._kept: dict[Any, Kept] = {}
        self._sources: dict[int, int] = {}
        self._reused: Kept | None = None
        self._key: Any = None
        self._entering: States = ()

    def forget(self) -> None:
        self._kept.clear()
        self._reused, self._key, self._entering = None, None, ()

    def around(self, name: str, now: Callable[[], Place | None]) -> Around:
        """For the block of this name; `now` gives the place of the backbone's call, or None where nothing is cached."""
        first, last = name == next(iter(self.modules)), name == [*self.modules][-1]
        alone, states = first and last and not self.residual, states_of(self.modules[name])
        pair = False

        def forward(compute: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal pair
            place = now()
            if place is None:
                return compute(*args, **kwargs)
            if first:
                self._decide(place, args, kwargs)
                self._entering = () if alone or self._key is None else states(args, kwargs)
            if self._reused is None:
                found = compute(*args, **kwargs)
                pair = isinstance(found, tuple)
                if last and self._key is not None:
                    self._keep(place, found)
                return found
            if last and not self.residual:
                return _copied(self._reused.what)
            given = states(args, kwargs)
            if last:
                given = tuple(x if r is None or x is None else x + r for x, r in zip(given, self._reused.what, strict=True))
            return given if pair else given[-1]

        return forward

    def _decide(self, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Whether this call is answered from what was kept, and if not whether what it gives is to be kept."""
        self._reused = self._key = None
        wanted, kept_for = self.reuses(place.step), self.reuses(place.step + 1)
        if wanted or kept_for:
            shapes = tuple(x.shape for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
            key = (place.pass_index, place.call, shapes)
            found = self._kept.get(key) if wanted else None
            if found is not None and found.step >= self._source(place.step):
                self._reused = found
            elif kept_for:
                self._key = key
        if self._reused is None:
            self.misses += 1
        else:
            self.hits += 1

    def _keep(self, place: Place, found: Any) -> None:
        if self.residual:
            after = found if isinstance(found, tuple) else (self._entering[0], found)
            what = tuple(None if a is None or b is None else a - b for a, b in zip(after, self._entering, strict=True))
        else:
            what = _copied(found)
        self._kept[self._key], self._entering = Kept(place.step, what), ()

    def _source(self, step: int) -> int:
        """The last step before this one that is to be computed."""
        if step not in self._sources:
            source = step - 1
            while source > 0 and self.reuses(source):
                source -= 1
            self._sources[step] = source
        return self._sources[step]


def states_of(module: torch.nn.Module) -> Callable[[tuple[Any, ...], dict[str, Any]], States]:
    """A function of a block's arguments that gives its text's hidden states, None where it takes none, and its picture's; of a
    block that gives two of its arguments anew those two, as it gives them."""
    forward = type(module).forward
    order = [p for p in signature(forward).parameters if p != "self"]
    given = given_back(forward)
    names = given if len(given) == 2 and {*given} <= {*order} else ["encoder_hidden_states", "hidden_states"]

    def find(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in kwargs:
            return kwargs[name]
        place = order.index(name) if name in order else len(args)
        return args[place] if place < len(args) else None

    return lambda args, kwargs: tuple(find(name, args, kwargs) for name in names)


def _copied(what: Any) -> Any:
    return tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, what)
