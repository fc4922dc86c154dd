"""Which jobs of a sweep are best, and what the jobs shared."""

import math

from diffopt.job_table import Row


def first_metric(rows: list[Row]) -> str | None:
    return next((name for r in rows for name in r.metrics), None)


def worth(row: Row, name: str | None) -> float:
    """The mean of the metric `name`, turned so that more is better; minus infinity where it was not measured."""
    if name is None or name not in row.metrics:
        return -math.inf
    metric = row.metrics[name]
    return float(metric["candidate"]["mean"]) * (1 if metric["better"] == "higher" else -1)


def best(rows: list[Row]) -> Row | None:
    """The job with the best mean of the first metric; the earliest of equals."""
    name = first_metric(rows)
    return max(rows, key=lambda r: worth(r, name)) if name else None


def overlapping(rows: list[Row], top: Row) -> int:
    """How many other distinct jobs have an interval of the first metric that meets the best job's."""
    name = first_metric(rows)
    ranges = [(r.metrics[name]["candidate"], r) for r in rows if name in r.metrics and not r.twin]
    ours = top.metrics[name]["candidate"] if name else {"low": None}
    if ours["low"] is None:
        return 0
    return sum(
        r is not top and s["low"] is not None and s["high"] >= ours["low"] and s["low"] <= ours["high"] for s, r in ranges
    )


def front(rows: list[Row]) -> set[str]:
    """The jobs that no other beats in quality, size and time at once; empty where quality is all that was measured."""
    name = first_metric(rows)
    costs = {r.job: (r.graph["bytes"] if r.graph else math.inf, r.seconds or math.inf) for r in rows}
    points = {r.job: (worth(r, name), *(-c for c in costs[r.job])) for r in rows if name in r.metrics and not r.twin}
    if len({p[1:] for p in points.values()}) < 2:
        return set()

    def beats(them: tuple[float, ...], ours: tuple[float, ...]) -> bool:
        return them != ours and all(t >= o for t, o in zip(them, ours, strict=True))

    return {job for job, ours in points.items() if not any(beats(them, ours) for them in points.values())}


def artifacts(rows: list[Row]) -> dict[str, int]:
    """Distinct artifacts of all jobs: `made` by this sweep, `found` in the store before; `shared` by several jobs."""
    users: dict[tuple[str, str], set[str]] = {}
    made = set()
    for row in rows:
        for step in row.run.content["steps"] if row.run else []:
            if step["state"] != "spare":
                key = (step["kind"], step["fingerprint"])
                users.setdefault(key, set()).add(row.job)
                made |= {key} if step["state"] == "made" else set()
    return {"made": len(made), "found": len(users) - len(made), "shared": sum(len(u) > 1 for u in users.values())}
