"""Why jobs of a sweep fell together: keys that no step reads under what else was chosen."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffopt.sweep.job_table import Row, swept
from diffopt.sweep.numeric import numbers


@dataclass(frozen=True)
class Reason:
    """A set of jobs that fell together for one reason."""

    keys: tuple[str, ...]
    """Swept keys that differ between jobs which are the same; none where a job was given twice."""
    under: tuple[str, ...]
    """What these jobs have in common among the swept choices, as `format=fp8`."""
    jobs: tuple[str, ...]
    distinct: int

    @property
    def text(self) -> str:
        keys = " and ".join(self.keys)
        under = f" under {', '.join(self.under)}" if self.under else ""
        what = f"no step reads {keys}{under}" if keys else f"the same settings were given more than once{under}"
        return f"{what}: {len(self.jobs)} jobs are {self.distinct}"


def reasons(rows: Sequence[Row]) -> list[Reason]:
    """Why the jobs that fell together did. Jobs are counted with those that they fell together with."""
    keys = swept(list(rows))
    choices = [k for k in keys if numbers(rows, k) is None]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.run:
            groups.setdefault(row.duplicate_of or row.job, []).append(row)
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], list[list[Row]]] = {}
    for group in groups.values():
        if len(group) > 1:
            inert = tuple(k for k in keys if len({r.value(k) for r in group}) > 1)
            under = tuple(f"{k}={group[0].value(k)}" for k in choices if k not in inert and group[0].value(k) is not None)
            found.setdefault((inert, under), []).append(group)
    return [Reason(inert, under, tuple(r.job for g in them for r in g), len(them)) for (inert, under), them in found.items()]
