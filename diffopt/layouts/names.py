"""What the layers of a backbone are called in diffusers, and what elsewhere: tables, and how they are read. Imports no torch.

A table goes both ways: with the names that a model has in diffusers it tells of every tensor of a file which of the model's
it is made of.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

Table = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Names:
    layers: Table | Callable[[Collection[str]], Table] = field(default_factory=dict)
    """By a layer's name there those of diffusers that it is made of, one under the other. `*` is the number of a block. A
    function is given all layers' names in diffusers, where the numbers there depend on how many there are."""
    tensors: Mapping[str, str] = field(default_factory=dict)
    """The same of a tensor whose last part is called otherwise too, or that is of no layer."""
    swapped: tuple[str, ...] = ()
    """Layers of diffusers the halves of whose outputs have changed places there; `-1` is the last block."""
    same: bool = False
    """Whether what is not named is called the same there."""

    def fuses(self) -> bool:
        """Whether layers of diffusers are one layer there."""
        return not callable(self.layers) and any(len(ours) > 1 for ours in self.layers.values())

    def found(self, here: Collection[str]) -> dict[str, tuple[str, ...]]:
        """By a tensor's name there, those of `here`, a model's in diffusers, that it is made of."""
        parts: dict[str, list[str]] = {}
        for name in here:
            layer, _, last = name.rpartition(".")
            parts.setdefault(layer, []).append(last)
        made: dict[str, tuple[str, ...]] = {
            put: (first,)
            for there, ours in self.tensors.items()
            for numbers, first in _matching(ours, here)
            for put in [_put(there, numbers)]
        }
        left = {*here} - {ours[0] for ours in made.values()}
        for there, own in (self.layers(parts) if callable(self.layers) else self.layers).items():
            for numbers, first in _matching(own[0], parts):
                layers = [_put(x, numbers) for x in own]
                for last in parts[first]:
                    if left >= {f"{x}.{last}" for x in layers}:
                        made[f"{_put(there, numbers)}.{last}"] = tuple(f"{x}.{last}" for x in layers)
        if self.same:
            taken = {x for ours in made.values() for x in ours}
            made |= {name: (name,) for name in here if name not in taken}
        return made

    def turned(self, here: Collection[str]) -> frozenset[str]:
        """Layers of `here` whose halves have changed places there."""
        layers, found = {name.rpartition(".")[0] for name in here}, set()
        for pattern in self.swapped:
            matching = sorted((int(n[0]) if n else 0, x) for n, x in _matching(pattern.replace("-1", "*"), layers))
            found |= {x for _, x in (matching[-1:] if "-1" in pattern else matching)}
        return frozenset(found)


def _matching(pattern: str, names: Collection[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Those names that a pattern with `*` says, each with the numbers in their places."""
    if "*" not in pattern:
        if pattern in names:
            yield (), pattern
        return
    said = re.compile(re.escape(pattern).replace(r"\*", r"(\d+)"))
    for name in names:
        if match := said.fullmatch(name):
            yield match.groups(), name


def _put(pattern: str, numbers: tuple[str, ...]) -> str:
    for number in numbers:
        pattern = pattern.replace("*", number, 1)
    return pattern
