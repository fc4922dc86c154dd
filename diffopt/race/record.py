"""A race as its file has it."""

from typing import TYPE_CHECKING

from diffopt.files.race import Entry, RaceFile
from diffopt.race import standing
from diffopt.race.contestant import Contestant
from diffopt.race.course import Course

if TYPE_CHECKING:
    from diffopt.race.race import Race

NAMES = ("latency", "bytes", "memory", "steps", "work")


def of(race: "Race", course: Course, answer: Contestant | None) -> RaceFile:
    ship = race.ship
    same = set.intersection(*({*c.overrides} for c in course.field))
    return RaceFile(
        want=ship.want,
        by=race.by,
        floors=[f.text for f in course.floors],
        first=course.first,
        rounds=ship.rounds,
        chance=ship.chance,
        looks=course.look,
        pictures=sum(c.n for c in course.field),
        whole=len(course.field) * course.whole,
        entries=tuple(_entry(race, c, same) for c in course.field),
        chosen=answer.number if answer else None,
        shown=bool(answer and standing.kept(answer)),
        ending=standing.ending(course.field, answer, costs=course.costs) if answer else None,
        notes=notes(race),
    )


def _entry(race: "Race", one: Contestant, same: set[str]) -> Entry:
    """`same` is what all settings were given."""
    costs = race.costs[one.number]
    known = {n: c.value if c.low == c.high or n == "latency" else None for n, c in costs.items()}
    return Entry(
        number=one.number,
        overrides=[o for o in one.overrides if o not in same],
        prompts=one.n,
        left=one.left,
        shown=one.shown,
        keeps=bool(one.scores and one.drawn.keeps),
        means={n: m.candidate.mean for n, m in one.drawn.metrics.items()} if one.scores else {},
        costs={n: known.get(n) for n in NAMES},
        damage=race.damages[one.number],
    )


def notes(race: "Race") -> list[str]:
    found = []
    if race.by == "work":
        found.append(
            "no runtime here has kernels for every format, so no time is claimed: the bytes of the weights times the denoising "
            "steps that are computed stand for it"
        )
    if race.ship.want == "memory" and race.by == "bytes":
        found.append("the formats are simulated, so no memory is claimed: the bytes of the weights stand for it")
    return found
