"""A race in lines for the console."""

from math import inf

from diffopt.files.race import Entry, RaceFile
from diffopt.race.contestant import Contestant
from diffopt.race.course import Course
from diffopt.sweep.race import cost_text, given, reason


def round(course: Course, due: list[tuple[Contestant, int]]) -> None:
    many = sum(n - c.n for c, n in due)
    living = sum(c.lives for c in course.field)
    print(f"race    round {course.look + 1}: {len(due)} of {living} settings draw {many} pictures", flush=True)


def timing(programs: int) -> None:
    print(f"race    {programs} distinct programs are timed", flush=True)


def last(answer: Contestant) -> None:
    print(f"race    setting {answer.number} is run as it is to be shipped", flush=True)


def table(race: RaceFile) -> list[str]:
    """A line a setting: the answer, those that stayed, then those that left, the last first."""
    wanted = {race.chosen: 0, race.ending.runner_up if race.ending else None: 1}
    ordered = sorted(race.entries, key=lambda e: (wanted.get(e.number, 2), -_stayed(e), -e.prompts, e.number))
    rows = [(str(e.number), str(e.prompts), _means(race, e), cost_text(race, e), reason(race, e), given(e)) for e in ordered]
    head = ("setting", "prompts", race.first, race.by, "", "")
    wide = [max(len(r[i]) for r in [head, *rows]) for i in range(6)]
    lines = ["  ".join(f"{x:{w}}" for x, w in zip(r, wide, strict=True)).rstrip() for r in [head, *rows]]
    return [*lines, *(f"note    {note}" for note in race.notes)]


def _stayed(entry: Entry) -> float:
    """Rounds."""
    return entry.left.look if entry.left else inf


def _means(race: RaceFile, entry: Entry) -> str:
    return f"{entry.means[race.first]:.2f}" if race.first in entry.means else "-"


def none(race: RaceFile) -> str:
    """The line of a race without an answer."""
    there = [e for e in race.entries if e.means]
    floors = " and ".join(race.floors)
    if not there:
        return "ship: every setting failed (got no picture of any); the page has each error"
    nearest = max(there, key=lambda e: e.means[race.first])
    return (
        f"ship.floor: no setting keeps {floors} (got at best {nearest.means[race.first]:.4g} of {race.first} by setting "
        f"{nearest.number}, {given(nearest)}); lower it, or add milder settings to the space"
    )
