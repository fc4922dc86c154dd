"""What a sweep computed, what its jobs shared, and the seconds that sharing saved."""

from dataclasses import dataclass, field
from typing import Any

from diffopt.files.run import RunStep
from diffopt.sweep.job_table import Row


@dataclass
class Use:
    """One artifact, and the jobs that it served."""

    kind: str
    stage: str
    seconds: float | None
    """What making it took, from its own record; None where the store has it no more."""
    made: bool = False
    """By this sweep; else it was in the store before."""
    jobs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Savings:
    """Over the jobs that came to an end."""

    uses: list[Use]
    alone: dict[str, float]
    """Seconds by job: what each would have taken by itself, with an empty store."""
    duplicates: frozenset[str]

    @property
    def made(self) -> int:
        return sum(u.made for u in self.uses)

    @property
    def found(self) -> int:
        return len(self.uses) - self.made

    @property
    def shared(self) -> int:
        return sum(len(u.jobs) > 1 for u in self.uses)

    @property
    def known(self) -> bool:
        """Whether every artifact's seconds are; else sums are at least what is said."""
        return all(u.seconds is not None for u in self.uses)

    @property
    def total(self) -> float:
        """Seconds of all jobs, each by itself."""
        return sum(self.alone.values())

    @property
    def spent(self) -> float:
        """Seconds of the steps that this sweep made."""
        return sum(u.seconds or 0.0 for u in self.uses if u.made)

    @property
    def saved(self) -> float:
        return self.total - self.spent

    def spent_by(self, job: str) -> float:
        """Seconds of the steps that this job made: of those of this sweep, it was the first to want them."""
        return sum(u.seconds or 0.0 for u in self.uses if u.made and u.jobs[0] == job)

    @property
    def by_duplicates(self) -> float:
        """Of the saved seconds those of jobs that fell together with an earlier one."""
        return sum(seconds for job, seconds in self.alone.items() if job in self.duplicates)

    @property
    def by_store(self) -> float:
        """Of the saved seconds those of artifacts that were in the store before, once each."""
        return sum(u.seconds or 0.0 for u in self.uses if not u.made)

    @property
    def by_sharing(self) -> float:
        """Of the saved seconds the rest: steps that distinct jobs have in common."""
        return self.saved - self.by_duplicates - self.by_store

    @property
    def stages(self) -> list[dict[str, Any]]:
        """A row a stage, in order: `artifacts`, `made`, `jobs` that one served at most, `spent` and `alone` seconds."""
        found: dict[str, list[Use]] = {}
        for use in self.uses:
            found.setdefault(use.stage, []).append(use)
        return [
            {
                "stage": stage,
                "artifacts": len(uses),
                "made": sum(u.made for u in uses),
                "jobs": max(len(u.jobs) for u in uses),
                "uses": sum(len(u.jobs) for u in uses),
                "spent": sum(u.seconds or 0.0 for u in uses if u.made),
                "alone": sum((u.seconds or 0.0) * len(u.jobs) for u in uses),
            }
            for stage, uses in found.items()
        ]


def savings(rows: list[Row]) -> Savings:
    """Add up the steps of all jobs. A spare step made nothing and served nothing."""
    uses: dict[tuple[str, str], Use] = {}
    alone: dict[str, float] = {}
    for row in rows:
        if not row.run:
            continue
        for step in row.run.content.steps:
            if step.state == "spare":
                continue
            key = (step.kind, step.fingerprint)
            if key not in uses:
                uses[key] = Use(step.kind, step.name.partition(".")[0], _seconds(row, step))
            use = uses[key]
            use.made |= step.state == "made"
            if row.job not in use.jobs:
                use.jobs.append(row.job)
                alone[row.job] = alone.get(row.job, 0.0) + (use.seconds or 0.0)
    return Savings(list(uses.values()), alone, frozenset(r.job for r in rows if r.duplicate_of))


def _seconds(row: Row, step: RunStep) -> float | None:
    record = row.run.read(step.name, "record.json") if row.run else None
    found = record["provenance"].get("seconds") if record else step.seconds if step.state == "made" else None
    return None if found is None else float(found)
