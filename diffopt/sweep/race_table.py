"""The page's table of a race: every setting, what it drew, when it left and why."""

from dataclasses import dataclass

from diffopt.files.race import Entry
from diffopt.sweep import race
from diffopt.sweep.findings import Findings

COSTS = {
    "work": "Work per picture",
    "bytes": "Weights",
    "latency": "Time per picture",
    "memory": "GPU memory",
    "steps": "Steps",
}


@dataclass(frozen=True)
class RaceTable:
    costs: dict[str, str]
    """Titles of those that some setting has, what is wanted first."""
    rows: list[tuple[Entry, list[str], str]]
    """Each with its costs, and why it is where it is; who stayed longest first."""
    notes: list[str]


def race_table(found: Findings) -> RaceTable | None:
    if found.race is None:
        return None
    over = found.race
    there = [n for n in (over.by, *COSTS) if any(e.costs.get(n) is not None for e in over.entries)]
    costs = {n: COSTS[n] for n in dict.fromkeys(there)}
    ordered = sorted(over.entries, key=lambda e: (e.number != over.chosen, e.left.look if e.left else 0, -e.prompts, e.number))
    stayed = [e for e in ordered if e.left is None]
    left = sorted((e for e in ordered if e.left), key=lambda e: -e.left.look if e.left else 0)
    rows = [(e, [race.cost_text(over, e, n) for n in costs], race.reason(over, e)) for e in [*stayed, *left]]
    return RaceTable(costs, rows, list(over.notes))
