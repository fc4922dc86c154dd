"""What a measured sensitivity says, for the report: the worst layers, and exclusions to paste. Imports no torch.

Errors here are relative and of norms, |y_q - y| / |y|: roots of the sums that `sensitivity.json` holds.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from diffopt.files.sensitivity import SensitivityFile

WORST = 10
"""Layers in the report's table of a format."""
FULL = "full precision"
MOST, HALF = 0.1, 0.5
"""Exclusions: at most this share of the layers, and no more than make up this share of the summed squared error."""


def ratio(errors: float, energy: float) -> float | None:
    """None where a layer put out nothing but zeros, or was not called."""
    return math.sqrt(errors / energy) if energy > 0 else None


@dataclass(frozen=True)
class Hurt:
    """One layer in one format."""

    name: str
    kind: str
    weights: int
    error: float
    """Relative, over all denoising steps."""
    steps: list[float | None]
    """Relative, in each."""

    @property
    def worst_step(self) -> int:
        """From 1."""
        return max(range(len(self.steps)), key=lambda i: self.steps[i] or 0.0) + 1


@dataclass(frozen=True)
class Reading:
    content: SensitivityFile

    @property
    def formats(self) -> list[str]:
        return [n for n in self.content.formats if self.layers(n)]

    @cached_property
    def _hurt(self) -> dict[str, list[Hurt]]:
        found: dict[str, list[Hurt]] = {name: [] for name in self.content.formats}
        for x in self.content.layers:
            for name, errors in x.error.items():
                found.setdefault(name, [])
                steps = [ratio(e, y) for e, y in zip(errors, x.energy, strict=True)]
                whole = ratio(sum(errors), sum(x.energy)) or 0.0
                found[name].append(Hurt(x.name, x.kind, x.weights, whole, steps))
        return found

    def layers(self, name: str) -> list[Hurt]:
        """Every layer that the format `name` quantizes, in the model's order."""
        return self._hurt[name]

    def worst(self, name: str) -> list[Hurt]:
        """The same, the worst first."""
        return sorted(self.layers(name), key=lambda x: -x.error)

    def share(self, name: str, layers: list[Hurt]) -> float:
        """Of the summed squared errors of a format, what these layers have."""
        whole = sum(x.error**2 for x in self.layers(name))
        return sum(x.error**2 for x in layers) / whole if whole else 0.0

    def options(self, name: str) -> list[str]:
        """What a layer in the format `name` could be instead: its own fields otherwise, other formats, full precision."""
        own = [x for x in self.content.options if x.partition(" ")[0] == name]
        return [*own, *(n for n in self.formats if n != name), FULL]

    def won(self, name: str, layers: list[Hurt], option: str) -> float | None:
        """Of the summed squared errors of a format, what goes where these layers are something else; below 0 what comes.
        None where none of them was tried so."""
        after = {} if option == FULL else {x.name: x.error for x in self._hurt.get(option, [])}
        tried = [x for x in layers if option == FULL or x.name in after]
        whole = sum(x.error**2 for x in self.layers(name))
        return sum(x.error**2 - after.get(x.name, 0.0) ** 2 for x in tried) / whole if tried and whole else None

    def best(self, name: str) -> str | None:
        """The option of the format itself that wins most over all layers; None where none wins, or none was tried. Inputs in
        full precision are no option of it: no product is faster then."""
        there = [x for x in self.options(name) if x.startswith(f"{name} ") and not x.endswith("=full")]
        own = {x: self.won(name, self.layers(name), x) or 0.0 for x in there}
        found = max(own, key=lambda x: own[x], default=None)
        return found if found and own[found] > 0 else None

    def exclusions(self, name: str) -> list[Hurt]:
        """The worst layers of a format, as many as are worth keeping in full precision; at least one."""
        found: list[Hurt] = []
        for layer in self.worst(name)[: max(1, int(MOST * len(self.layers(name))))]:
            if found and self.share(name, found) >= HALF:
                break
            found.append(layer)
        return found

    def block(self, name: str) -> str:
        """YAML that a recipe takes as it is; exact names are globs that match nothing else."""
        return "\n".join(["format:", "  exclude:", *(f"    - {x.name}" for x in self.exclusions(name))])
