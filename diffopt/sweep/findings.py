"""What a sweep found: computed once, said on the page, in the console and as data."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from diffopt.files.race import RaceFile
from diffopt.quality.limit import Limit
from diffopt.sweep import cost, pick, ranking
from diffopt.sweep.cost import Cost
from diffopt.sweep.duplicates import Reason, reasons
from diffopt.sweep.job_table import Row, settings, swept, table
from diffopt.sweep.pick import Pick, Verdict
from diffopt.sweep.savings import Savings, savings
from diffopt.text import with_interval


@dataclass(frozen=True)
class Findings:
    """All that is said of one sweep under the floors that were stated."""

    directory: Path
    floors: list[Limit]

    @cached_property
    def rows(self) -> list[Row]:
        return table(self.directory)

    @cached_property
    def race(self) -> RaceFile | None:
        """Of a sweep that was a race."""
        return RaceFile.read(self.directory) if (self.directory / RaceFile.NAME).is_file() else None

    @cached_property
    def swept(self) -> list[str]:
        return swept(self.rows)

    @cached_property
    def first(self) -> str | None:
        return ranking.first_metric(self.rows)

    @cached_property
    def compared(self) -> list[Row]:
        """Those whose means can be set beside each other: of a race those that drew the most prompts."""
        if not self.race:
            return self.rows
        most = max((e.prompts for e in self.race.entries), default=0)
        drawn = {str(e.number) for e in self.race.entries if e.prompts == most}
        return [r for r in self.rows if r.job in drawn]

    @cached_property
    def best(self) -> Row | None:
        return ranking.best(self.compared)

    @cached_property
    def ties(self) -> list[Row]:
        return ranking.ties(self.compared, self.best) if self.best else []

    @property
    def few(self) -> bool:
        """Whether there are too few pictures to call anything."""
        return bool(self.best and self.first and self.best.metrics[self.first].candidate.ends is None)

    @cached_property
    def size(self) -> Cost | None:
        return cost.sizes(self.rows)

    @cached_property
    def time(self) -> Cost | None:
        return cost.times(self.rows)

    @property
    def costs(self) -> list[Cost]:
        """Those that tell jobs apart."""
        raced = [cost.raced(self.race, name) for name in cost.RACED] if self.race else []
        return [c for c in (self.size, self.time, *raced) if c and c.varies]

    @cached_property
    def fronts(self) -> dict[str, list[Row]]:
        """The Pareto front of the first metric against each cost, by the cost's name; without those that are trivial."""
        found = {c.name: ranking.front(self.rows, self.first, c) for c in self.costs}
        return {name: rows for name, rows in found.items() if rows}

    def check(self) -> None:
        """Raises ConfigError for a floor under a metric that was not measured, or that has no value to compare with."""
        pick.check(self.floors, self.rows)

    @cached_property
    def verdicts(self) -> dict[str, list[Verdict]]:
        """By distinct job one a floor; empty where no floor was stated."""
        return {r.job: v for r in self.rows if self.floors and r.distinct and (v := pick.judge(r, self.floors))}

    @cached_property
    def picks(self) -> list[Pick]:
        """The job to ship under the floors by each cost, or by quality where no cost tells jobs apart."""
        if self.race:
            return [pick.Pick(None, r, self.race.shown, None) for r in self.rows if r.job == str(self.race.chosen)]
        costs: list[Cost | None] = [*self.costs] or [None]
        return [p for c in costs if (p := pick.pick(self.rows, self.verdicts, c))]

    @property
    def shipped(self) -> dict[str, list[Pick]]:
        """The picks by job: the smallest may be the fastest too."""
        found: dict[str, list[Pick]] = {}
        for each in self.picks:
            found.setdefault(each.row.job, []).append(each)
        return found

    @cached_property
    def nearest(self) -> tuple[Row, Verdict] | None:
        return None if self.picks else pick.nearest(self.rows, self.verdicts)

    @property
    def shown(self) -> list[Row]:
        """The jobs whose pictures matter: the fronts' points, the best and the picked; all where that is one alone."""
        named = {r.job for rows in self.fronts.values() for r in rows} | {p.row.job for p in self.picks}
        named |= {self.best.job} if self.best and named else set()
        return [r for r in self.rows if r.distinct and (r.job in named or len(named) < 2)]

    @cached_property
    def savings(self) -> Savings:
        return savings(self.rows)

    @cached_property
    def reasons(self) -> list[Reason]:
        return reasons(self.rows)

    @property
    def failed(self) -> list[Row]:
        return [r for r in self.rows if r.error]

    @property
    def distinct(self) -> int:
        return sum(r.distinct for r in self.rows)

    def given(self, row: Row) -> str:
        return settings(row, self.swept)

    def measured(self, row: Row, name: str) -> str:
        """`PSNR 42.0 dB [41.0, 43.0]`."""
        metric = row.metrics[name]
        return f"{metric.title} {with_interval(metric.candidate, metric.unit)}"
