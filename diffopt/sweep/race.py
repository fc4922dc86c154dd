"""What a race says of its settings, in words: the console, the page and ship.json say the same."""

from collections.abc import Sequence

from diffopt.files.race import Entry, RaceFile
from diffopt.sweep.cost import ALIKE
from diffopt.text import size

UNITS = {"latency": "ms", "steps": "steps"}


def given(entry: Entry) -> str:
    return " ".join(entry.overrides)


def cost_text(race: RaceFile, entry: Entry, name: str | None = None) -> str:
    """`11.9 MiB`, `84.2 ms`, `20 steps`, or `-` where it is not known."""
    name = name or race.by
    value = entry.costs.get(name)
    if value is None:
        return "-"
    if name == "latency":
        return f"{1000 * value:.4g} ms"
    return f"{value:g}" if name == "steps" else size(value)


def reason(race: RaceFile, entry: Entry) -> str:
    """Why it is where it is."""
    if entry.number == race.chosen:
        return "shipped"
    runner = race.ending is not None and entry.number == race.ending.runner_up
    first = "runner-up; " if runner else ""
    left = entry.left
    if left is None:
        if not entry.prompts:
            return f"{first}not drawn: nothing cheaper was left to find"
        tied = race.ending is not None and entry.number in race.ending.ties
        doubtful = race.ending is not None and entry.number in race.ending.doubtful
        if not entry.keeps:
            return f"{first}its means do not keep the floors, which is not shown"
        if tied or doubtful:
            return first + ("not told apart from the shipped one" if tied else "cheaper, and may keep the floors")
        return first + ("worse than the shipped one" if _as_cheap(race, entry) else "costs more than the shipped one")
    at = f"after round {left.look}"
    if left.why == "failed":
        return f"{first}failed {at}"
    if left.why == "below":
        return f"{first}left {at}: below {left.floor}"
    if left.why == "dearer":
        return f"{first}left {at}: {'' if left.prompts else 'undrawn, '}costs more than {left.by}, which keeps the floors"
    return f"{first}left {at}: worse than {left.by}, which costs no more"


def _as_cheap(race: RaceFile, entry: Entry) -> bool:
    """Whether it costs no more than the shipped one, as far as is known; where the best is sought costs do not count."""
    shipped = next((e.costs.get(race.by) for e in race.entries if e.number == race.chosen), None)
    ours = entry.costs.get(race.by)
    return race.want == "quality" or shipped is None or ours is None or ours <= shipped * (1 + ALIKE)


def verdict(race: RaceFile) -> list[str]:
    """The answer in a few sentences."""
    by = {e.number: e for e in race.entries}
    if race.chosen is None or race.ending is None:
        return []
    one, ending = by[race.chosen], race.ending
    floors = " and ".join(race.floors) or "no floor"
    keeps = "is shown to keep" if race.shown else "keeps in its means, which is not shown,"
    lines = [
        f"setting {one.number}, {given(one)}: of what {'keeps ' + floors if race.floors else 'there is'} the {_least(race)}"
    ]
    lines.append(f"it {keeps} {floors}: {_means(one)} over {one.prompts} prompts")
    if ending.runner_up is not None:
        second = by[ending.runner_up]
        lines.append(
            f"runner-up is setting {second.number}, {given(second)}: {cost_text(race, second)}, {_means(second)} over "
            f"{second.prompts} prompts"
        )
    if ending.ties:
        lines.append(f"not told apart from it: {_numbers(ending.ties)}")
    if ending.doubtful:
        lines.append(f"cheaper, and may keep the floors too, which their pictures do not show: {_numbers(ending.doubtful)}")
    share = race.pictures / race.whole
    drawn = f"{race.pictures} pictures of the {race.whole} of all settings, {share:.1%}, in {race.looks} rounds"
    lines.append(f"{drawn}; the right setting is dropped with a chance of at most {race.chance:g}")
    return lines


def _least(race: RaceFile) -> str:
    if race.want == "quality":
        return f"best in {race.first}"
    cost = {e.number: e for e in race.entries}[race.chosen or 0]
    names = {"latency": "fastest", "steps": "one of the fewest steps", "memory": "least memory", "bytes": "smallest"}
    stands = (
        "" if race.by == race.want else f", by {'the work of its weights' if race.by == 'work' else 'the bytes of its weights'}"
    )
    return f"{names[race.want]}{stands}, {cost_text(race, cost)}"


def _means(entry: Entry) -> str:
    return ", ".join(f"{name} {mean:.4g}" for name, mean in entry.means.items())


def _numbers(found: Sequence[int]) -> str:
    return ", ".join(map(str, found))
