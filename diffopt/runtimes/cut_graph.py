"""The parts of a cut graph as one: some steps run all of them, the others take what crosses the cut from before.

For whatever runs a part: an onnxruntime session, later an engine.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffopt.files.graph import PartFile

Run = Callable[[Mapping[str, Any], Sequence[str]], Sequence[Any]]
"""Runs one part: its inputs by name and the names of its outputs, to those outputs."""


@dataclass(frozen=True)
class Change:
    """Arithmetic on a runtime's own tensors, for what is reused as a change to what a step has computed anew."""

    subtract: Callable[[Any, Any], Any]
    add: Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Place:
    """Of one call of the backbone in the denoising loop."""

    step: int
    """From 0."""
    key: Hashable
    """What tells calls of one step from each other, and calls of other shapes: only calls of one key reuse each other's."""


class CutGraph:
    def __init__(self, parts: Sequence[PartFile], runs: Sequence[Run], change: Change, reuses: Callable[[int], bool]):
        """`parts` as in graph.json, in their order, and what runs each. `reuses` says whether a step, from 0, reuses."""
        self.parts = parts
        self.runs = runs
        self.change = change
        self.reuses = reuses
        self.calls = self.hits = 0
        self._entering = {name: came for p in parts for name, came in p.entering.items()}
        read = {name for p in parts if not p.reused for name in p.inputs} | {*self._entering.values()}
        self._crossing = [name for p in parts if p.reused for name in p.outputs if name in read]
        self._kept: dict[Hashable, tuple[int, dict[str, Any]]] = {}

    def forget(self) -> None:
        """Nothing of one run is reused in the next."""
        self._kept.clear()

    def __call__(self, inputs: Mapping[str, Any], place: Place | None) -> dict[str, Any]:
        """The outputs of all parts that ran, by name. Without a place in a loop everything is computed and nothing kept."""
        self.calls += 1
        kept = self._found(place)
        if kept is not None:
            self.hits += 1
        values = dict(inputs)
        for part, run in zip(self.parts, self.runs, strict=True):
            if kept is None or not part.reused:
                given = {name: self._value(name, values, kept) for name in part.inputs}
                values |= zip(part.outputs, run(given, part.outputs), strict=True)
        if kept is None and place and self.reuses(place.step + 1):
            self._kept[place.key] = place.step, {name: self._left(name, values) for name in self._crossing}
        return values

    def _found(self, place: Place | None) -> dict[str, Any] | None:
        """What is kept of the last step that was to be computed, where this one reuses."""
        if place is None or not self.reuses(place.step) or place.key not in self._kept:
            return None
        source = place.step - 1
        while source > 0 and self.reuses(source):
            source -= 1
        step, kept = self._kept[place.key]
        return kept if step >= source else None

    def _left(self, name: str, values: Mapping[str, Any]) -> Any:
        """What of a crossing tensor is kept."""
        return self.change.subtract(values[name], values[self._entering[name]]) if name in self._entering else values[name]

    def _value(self, name: str, values: dict[str, Any], kept: Mapping[str, Any] | None) -> Any:
        """A tensor that this call has computed, or what stands for it."""
        if kept is not None and name in kept and name not in values:
            came = self._entering.get(name)
            values[name] = kept[name] if came is None else self.change.add(self._value(came, values, kept), kept[name])
        return values[name]
