"""The jobs of a sweep as data: `results.json` (schema diffopt.sweep/2) and the same flat as `results.csv`.

A job's record:
    job, recipe, overrides      its directory, recipe and overrides
    metrics.NAME                {mean, low, high, n} of the candidate, and `difference` from the reference where there is one
    compared.NAME.METRIC        {mean, low, high, n} of a further candidate of eval.compare, and `difference`: candidate - it
    bytes.graph, plan, weights  of the ONNX graph, of the engine plan, and of the weights as stored, counted from the layers
    seconds.image               median per picture; None for a simulated format, whatever was timed
    seconds.alone, spent        of all its steps by themselves with an empty store, and of those that this job made
    speedup                     {mean, low, high, n} over its baseline, end to end; None for a simulated format
    best, not_told_apart        by the first metric; whether the sample tells it apart from the best
    front.size, front.time      whether it is on that Pareto front; None where there is no such front
    floors.TEXT                 {says: kept | broken | not shown | too few, mean, low, high, n}: the margin on the right side
    fell_together_with          the first job that is the same
    wanted                      fingerprint by step of what it was for
    error                       of a job that failed or was interrupted

Of fewer than 10 pictures there is no interval: low and high are null.
"""

import csv
import json
from io import StringIO
from typing import Any

from diffopt.files.interval import Interval
from diffopt.sweep.cost import size_of
from diffopt.sweep.findings import Findings
from diffopt.sweep.job_table import Row


def records(found: Findings) -> list[dict[str, Any]]:
    """One a job. What is known of the job that another fell together with is said of both."""
    return [_record(found, row) for row in found.rows]


def as_json(found: Findings) -> str:
    savings = found.savings
    content = {
        "schema": "diffopt.sweep/2",
        "swept": found.swept,
        "first_metric": found.first,
        "floors": [f.text for f in found.floors],
        "picks": [{"by": p.cost.name if p.cost else "quality", "job": p.row.job, "shown": p.shown} for p in found.picks],
        "artifacts": {"made": savings.made, "found": savings.found, "shared": savings.shared},
        "seconds": {
            "alone": round(savings.total, 3),
            "spent": round(savings.spent, 3),
            "saved": round(savings.saved, 3),
            "saved_by_jobs_that_fell_together": round(savings.by_duplicates, 3),
            "saved_by_sharing": round(savings.by_sharing, 3),
            "saved_by_the_store": round(savings.by_store, 3),
        },
        "fell_together": [{"keys": r.keys, "under": r.under, "jobs": r.jobs, "distinct": r.distinct} for r in found.reasons],
        "jobs": records(found),
    }
    return json.dumps(content, indent=1)


def as_csv(found: Findings) -> str:
    """A line a job; a column for what any job has."""
    lines = [{k: v for k, v in _flat(r).items() if v is not None} for r in records(found)]
    out = StringIO()
    writer = csv.DictWriter(out, _columns(lines), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _columns(lines: list[dict[str, Any]]) -> list[str]:
    """In the order of the record that has most of them: a failed job has few."""
    ordered = sorted(lines, key=len, reverse=True)
    return list(dict.fromkeys(k for line in ordered for k in line))


def _record(found: Findings, row: Row) -> dict[str, Any]:
    first = next(r for r in found.rows if r.job == row.duplicate_of) if row.duplicate_of else row
    alone = found.savings.alone.get(row.job)
    return {
        "job": row.job,
        "recipe": row.run.content.name if row.run else None,
        "overrides": row.overrides,
        "metrics": {n: _with(m.candidate, m.difference) for n, m in row.metrics.items()},
        "compared": {
            c.name: {n: _with(m.compared, m.difference) for n, m in c.metrics.items()}
            for c in (row.run.compared if row.run else ())
        },
        "bytes": {name: size_of(row, step) for name, step in (("graph", "export"), ("plan", "build"), ("weights", "weights"))},
        "seconds": {
            "image": row.seconds,
            "alone": None if alone is None else round(alone, 3),
            "spent": round(found.savings.spent_by(row.job), 3) if row.run else None,
        },
        "speedup": _stat(row.speedup) if row.speedup else None,
        "best": first is found.best,
        "not_told_apart": first in found.ties,
        "front": {c: (first in found.fronts[c] if c in found.fronts else None) for c in ("size", "time")},
        "floors": {v.floor.text: {"says": v.says, **_stat(v.margin)} for v in found.verdicts.get(first.job, [])},
        "fell_together_with": row.duplicate_of,
        "wanted": row.wanted,
        "error": row.error,
    }


def _with(stat: Interval, difference: Interval | None) -> dict[str, Any]:
    return {**_stat(stat), **({"difference": _stat(difference)} if difference else {})}


def _stat(stat: Interval) -> dict[str, Any]:
    low, high = stat.ends or (None, None)
    return {"mean": stat.mean, "low": low, "high": high, "n": stat.n}


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """A line of results.csv: `metrics.psnr.mean` and so on as columns; overrides by their own names."""
    line: dict[str, Any] = {}

    def visit(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for inner, v in value.items():
                visit(v, f"{key}.{inner}" if key and key != "overrides" else inner)
        else:
            line[key] = value

    visit(record, "")
    return line
