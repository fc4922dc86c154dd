"""Small pictures of a sweep's jobs to compare, a strip for each set of references."""

from dataclasses import dataclass

from diffopt.report.pair import RunPair
from diffopt.sweep.job_table import Row
from diffopt.sweep.ranking import first_metric

PROMPTS = 8
"""In a strip."""


@dataclass(frozen=True)
class Strip:
    reference: list[RunPair]
    """Of one job, which has the references too."""
    jobs: list[tuple[Row, list[RunPair]]]


def thumbnails(rows: list[Row], shown: list[Row]) -> list[Strip]:
    """One for each set of references, with every job in `shown`.

    The prompts are those where the first metric, averaged over all `rows`, is worst.
    """
    name = first_metric(rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.distinct and row.run and row.run.images.images:
            drawn = next((s.fingerprint for s in row.run.content.steps if s.name == "reference"), "")
            groups.setdefault(drawn, []).append(row)
    found = []
    for group in groups.values():
        pairs = {r.job: {p.number: p for p in r.run.pairs} for r in group if r.run}
        ranks: dict[int, int] = {}
        for job in pairs.values():
            for rank, number in enumerate(job):  # the worst first
                ranks[number] = ranks.get(number, 0) + rank
        numbers = sorted(sorted(ranks, key=lambda i: ranks[i])[:PROMPTS] if name else sorted(ranks)[:PROMPTS])
        jobs = [(r, [pairs[r.job][i] for i in numbers if i in pairs[r.job]]) for r in group if r in shown]
        if jobs:
            found.append(Strip(jobs[0][1], jobs))
    return found
