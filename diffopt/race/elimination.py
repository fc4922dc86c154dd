"""Who leaves a race, by what its pictures show: pure, from scores prompt by prompt.

The true answer is the setting of the least cost whose mean keeps every floor, of equal costs the best. With the chance that
`bounds.spent` gives a round it is dropped by mistake in one of two ways, and each has half of it:

- A floor that it keeps is taken for broken. Only its own floors count here, so the half is divided among them alone: what
  happens to other settings does not drop the right one.
- Another setting, of no more cost, is taken for one that keeps the floors, or for a better one. The half is divided among the
  other settings, twice, for each may be wrong in either.

All comparisons are of paired differences over the prompts that both have drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffopt.files.race import Left, Why
from diffopt.race.bounds import least, most, spent
from diffopt.race.contestant import Contestant, Scores


@dataclass(frozen=True)
class Levels:
    """The chances of error of a race's tests. A test is made once for each round's number of prompts, that both have of two
    that are compared: so its look is the round, whatever else was drawn meanwhile."""

    chance: float
    rounds: Sequence[int]
    floors: int
    settings: int

    def floor(self, prompts: int) -> float:
        """Of each floor of a setting."""
        return self._half(prompts) / max(1, self.floors)

    def rival(self, prompts: int) -> float:
        """Of each claim about each other setting."""
        return self._half(prompts) / (2 * max(1, self.settings - 1))

    def _half(self, prompts: int) -> float:
        return spent(self.chance / 2, 1 + sum(n < prompts for n in self.rounds))


def eliminate(field: Sequence[Contestant], levels: Levels, look: int, *, costs: bool = True) -> None:
    """Mark who leaves at this look, and who is shown to keep every floor. Without `costs` the best is sought, whatever it
    costs."""

    def leave(one: Contestant, why: Why, *, floor: str | None = None, by: int | None = None) -> None:
        one.left = Left(look=look, prompts=one.n, why=why, floor=floor, by=by)

    for one in [c for c in field if c.lives and c.scores]:
        if floor := _broken(one.drawn, levels.floor(one.n)):
            leave(one, "below", floor=floor)
        elif not one.shown and all(least(m, levels.rival(one.n)) >= 0 for m in one.drawn.margins):
            one.shown = True
    for one in [c for c in field if c.lives]:
        for other in [c for c in field if c is not one and c.lives and c.scores]:
            if why := _beaten(one, other, levels, costs):
                leave(one, why, by=other.number)
                break


def _broken(scores: Scores, alpha: float) -> str | None:
    """The first floor that is shown to be broken."""
    pairs = zip(scores.floors, scores.margins, strict=True)
    return next((floor.text for floor, margins in pairs if most(margins, alpha) < 0), None)


def _beaten(one: Contestant, other: Contestant, levels: Levels, costs: bool) -> Why | None:
    """Why `one` is not the answer beside `other`."""
    if costs and other.shown and other.cost.below(one.cost):
        return "dearer"
    if one.scores is None or (costs and not other.cost.at_most(one.cost)):
        return None
    ours, theirs = one.scores, other.drawn
    alpha = levels.rival(min(one.n, other.n))
    if not _better(theirs.worth, ours.worth, alpha):
        return None
    if other.shown or all(_better(b, a, alpha) for a, b in zip(ours.margins, theirs.margins, strict=True)):
        return "worse"
    return None


def _better(these: np.ndarray, those: np.ndarray, alpha: float) -> bool:
    """Whether the first are shown to have the higher mean, over the prompts of both."""
    n = min(len(these), len(those))
    return least(these[:n] - those[:n], alpha) > 0
