"""The course of a race: who draws how many prompts next, until nothing that is left to draw can change the answer.

Settings enter in the order of what is known of them before they draw: the cheapest first, of equal ones the least damaged. Some
enter at a time. As long as one whose means keep the floors is in the race, those that cost more wait: if it is shown to keep
them they leave undrawn.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from diffopt.errors import GateError
from diffopt.files.metrics import MetricResult
from diffopt.files.race import Left
from diffopt.groups.ship import Ship
from diffopt.quality.limit import Limit
from diffopt.race.bounds import most
from diffopt.race.contestant import Contestant, Scores
from diffopt.race.elimination import Levels, eliminate
from diffopt.race.standing import kept

PARTS, FEWEST = 4, 4
"""The field enters in so many parts, of so many settings at least."""


class Course:
    def __init__(self, ship: Ship, field: Sequence[Contestant], first: str):
        """`first` is the metric that tells better from worse."""
        self.ship, self.field, self.first = ship, list(field), first
        self.floors = ship.floors
        self.costs = ship.want != "quality"
        self.levels = Levels(ship.chance, ship.rounds, len(self.floors), len(self.field))
        self.look = 0

    @property
    def whole(self) -> int:
        return self.ship.rounds[-1]

    def run(
        self,
        draw: Callable[[list[tuple[Contestant, int]]], Mapping[int, Mapping[str, MetricResult]]],
        looked: Callable[[], None] = lambda: None,
    ) -> None:
        """`draw` draws so many prompts with each of some settings, and returns their metrics by number; a setting that it
        leaves out has failed. `looked` is called after every look.

        Raises GateError where full precision itself is shown not to keep a floor.
        """
        while due := self.due():
            found = draw(due)
            self.look += 1
            for one, _ in due:
                if one.number in found:
                    one.scores = Scores(found[one.number], self.floors, self.first)
                else:
                    one.left = Left(look=self.look, prompts=one.n, why="failed")
            self._check_reference()
            eliminate(self.field, self.levels, self.look, costs=self.costs)
            looked()

    def due(self) -> list[tuple[Contestant, int]]:
        """The settings that draw next, and how many prompts they are to have then."""
        living = [c for c in self.field if c.lives]
        leader = self._leader(living)
        there = [c for c in living if c.scores and c.n < self.whole and not self._waits(c, leader)]
        found = [c for c in there if not c.shown or self._rivals(c, living)]
        found += self._entrants(living, leader)
        return [(c, next(n for n in self.ship.rounds if n > c.n)) for c in found]

    def _leader(self, living: list[Contestant]) -> Contestant | None:
        """The cheapest whose means keep the floors, unless all its prompts have not shown that it does."""
        there = [c for c in living if c.scores and c.drawn.keeps and (c.n < self.whole or kept(c))]
        return min(there, key=lambda c: (c.cost.value, -c.mean), default=None) if self.costs else None

    def _waits(self, one: Contestant, leader: Contestant | None) -> bool:
        return leader is not None and leader.cost.below(one.cost)

    def _rivals(self, one: Contestant, living: list[Contestant]) -> bool:
        """Whether another of the same cost may be the better one."""
        same = [c for c in living if c is not one and c.scores and c.drawn.keeps]
        return any(not self.costs or not (one.cost.below(c.cost) or c.cost.below(one.cost)) for c in same)

    def _entrants(self, living: list[Contestant], leader: Contestant | None) -> list[Contestant]:
        waiting = [c for c in living if not c.scores and not self._waits(c, leader)]
        ordered = sorted(waiting, key=self._order)
        return ordered[: max(FEWEST, -(-len(self.field) // PARTS))]

    def _order(self, one: Contestant) -> tuple[float, float, int]:
        return (one.cost.value if self.costs else 0.0, one.damage, one.number)

    def _check_reference(self) -> None:
        for floor in self.floors:
            theirs = list(self._references(floor))
            if theirs and all(broken for broken, _ in theirs):
                mean = max(mean for _, mean in theirs)
                raise GateError(
                    f"ship.floor: full precision itself does not keep it (got {floor.text}, and a mean of {mean:.4g} over the "
                    f"{max(c.n for c in self.field)} prompts drawn so far); lower it"
                )

    def _references(self, floor: Limit) -> Iterator[tuple[bool, float]]:
        """Of each setting's full precision whether it is shown to break a floor, and its mean."""
        for one in (c for c in self.field if c.scores):
            metric = one.drawn.metrics[floor.metric]
            margins = floor.of_reference(metric)
            if margins is not None and metric.reference is not None:
                yield most(margins, self.levels.floor(one.n)) < 0, metric.reference.mean
