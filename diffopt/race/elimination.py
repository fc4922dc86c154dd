"""Who leaves a race, by what its pictures show: pure, from scores prompt by prompt.

The true answer is the setting of the least cost whose mean keeps every floor, of equal costs the best. With the chance that
`bounds.spent` gives a look it is dropped by mistake in one of two ways, and each has half of it:

- A floor that it keeps is taken for broken. Only its own floors count here, so the half is divided among them alone: what
  happens to other settings does not drop the right one.
- Another setting, of no more cost, is taken for one that keeps the floors, or for a better one. The half is divided among the
  other settings, twice, for each may be wrong in either.

All comparisons are of paired differences over the prompts that both have drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffopt.files.race import Left
from diffopt.race.bounds import least, most, spent
from diffopt.race.contestant import Contestant, Scores


@dataclass(frozen=True)
class Level:
    """The chances of error of one look."""

    look: int
    floor: float
    """Of each floor."""
    rival: float
    """Of each claim about each other setting."""

    @classmethod
    def of(cls, chance: float, look: int, floors: int, settings: int) -> "Level":
        half = spent(chance / 2, look)
        return cls(look, half / max(1, floors), half / (2 * max(1, settings - 1)))


def eliminate(field: Sequence[Contestant], level: Level, *, costs: bool = True) -> list[Contestant]:
    """Mark who leaves at this look, and who is shown to keep every floor. Returns those who left.

    Without `costs` the best is sought, whatever it costs.
    """
    left: list[Contestant] = []

    def leave(one: Contestant, why: str, **about: object) -> None:
        one.left = Left(look=level.look, prompts=one.n, why=why, **about)  # type: ignore[arg-type]
        left.append(one)

    drawn = [c for c in field if c.lives and c.scores]
    for one in drawn:
        if floor := _broken(one.drawn, level.floor):
            leave(one, "below", floor=floor)
        elif not one.shown and all(least(m, level.rival) >= 0 for m in one.drawn.margins):
            one.shown = True
    for one in [c for c in field if c.lives]:
        for other in [c for c in field if c is not one and c.lives and c.scores]:
            if why := _beaten(one, other, level.rival, costs):
                leave(one, why, by=other.number)
                break
    return left


def _broken(scores: Scores, alpha: float) -> str | None:
    """The first floor that is shown to be broken."""
    pairs = zip(scores.floors, scores.margins, strict=True)
    return next((floor.text for floor, margins in pairs if most(margins, alpha) < 0), None)


def _beaten(one: Contestant, other: Contestant, alpha: float, costs: bool) -> str | None:
    """Why `one` is not the answer beside `other`."""
    if costs and other.shown and other.cost.below(one.cost):
        return "dearer"
    if one.scores is None or (costs and not other.cost.at_most(one.cost)):
        return None
    ours, theirs = one.scores, other.drawn
    if not _better(theirs.worth, ours.worth, alpha):
        return None
    if other.shown or all(_better(b, a, alpha) for a, b in zip(ours.margins, theirs.margins, strict=True)):
        return "worse"
    return None


def _better(these: np.ndarray, those: np.ndarray, alpha: float) -> bool:
    """Whether the first are shown to have the higher mean, over the prompts of both."""
    n = min(len(these), len(those))
    return least(these[:n] - those[:n], alpha) > 0
