"""What a job's quality is paid with: bytes, and time where it may be claimed."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from diffopt.files.latency import LatencyFile
from diffopt.files.race import RaceFile
from diffopt.sweep.job_table import Row

ALIKE = 1e-3
"""Costs that differ by less than this share are one: names of tensors and scales folded or not move a graph's size."""


@dataclass(frozen=True)
class Cost:
    """One cost of every job that has it; less is better."""

    name: str
    """`size` or `time`."""
    title: str
    unit: str
    scale: float
    """Multiplies a value to `unit`."""
    values: dict[str, float]
    """By job, in bytes or seconds; of jobs that fell together only the first."""
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95% intervals of those that were measured."""

    @property
    def varies(self) -> bool:
        """Whether some job costs more than another."""
        return bool(self.values) and max(self.values.values()) > min(self.values.values()) * (1 + ALIKE)

    def rank(self, job: str) -> float:
        """For comparing: alike costs have one rank."""
        ordered = sorted(self.values.values())
        start = ordered[0]
        for value in ordered:
            if value > start * (1 + ALIKE):
                start = value
            if value >= self.values[job]:
                break
        return start

    def text(self, job: str) -> str:
        """With as many decimals as give the largest four figures."""
        decimals = max(0, 4 - len(str(int(max(self.values.values()) * self.scale))))
        return f"{self.values[job] * self.scale:,.{decimals}f} {self.unit}"


def size_of(row: Row, step: str) -> float | None:
    """Bytes of a job's graph, plan or, for `weights`, of its weights as stored."""
    if not row.run:
        return None
    if step == "weights":
        return row.run.weight_bytes
    found = row.run.size_of(step)
    return found.bytes if found else None


SIZES = {
    "export": "Size of the ONNX graph",
    "build": "Size of the engine plan",
    "deploy": "Size of the deployed weights",
    "pack": "Size of the packed weights",
    "weights": "Size of the weights as stored",
}


def sizes(rows: list[Row]) -> Cost | None:
    """Bytes of all jobs by one measure: the graph's, the plan's, or the stored weights', the first that every job has.

    Where none is had by every job, that which most have.
    """
    found = [(step, _values(rows, lambda r, step=step: size_of(r, step))) for step in SIZES]  # type: ignore[misc]
    step, values = max(found, key=lambda f: len(f[1]))
    if not values:
        return None
    unit, scale = next((u, s) for u, s in UNITS if max(values.values()) * s >= 1 or u == "B")
    return Cost("size", SIZES[step], unit, scale, values)


UNITS = (("GiB", 2.0**-30), ("MiB", 2.0**-20), ("KiB", 2.0**-10), ("B", 1.0))


def times(rows: list[Row]) -> Cost | None:
    """Seconds per picture where a runtime has the kernels; None where jobs were timed on machines that differ.

    A job is timed in turn with its baseline, but minutes after another job, when the machine may have more to do. So its
    time is its share of its own baseline's, 1 / speedup, of the median of all times of that baseline.
    """
    timed = [r for r in rows if r.distinct and r.seconds]
    if not timed or len(machines(rows)) > 1:
        return None
    sets: dict[str, list[Row]] = {}
    for row in timed:
        sets.setdefault(_beside(row), []).append(row)
    values, ranges = {}, {}
    for group in sets.values():
        base = median(x.baseline.seconds_per_image.median for r in group if (x := _latency(r)))
        for row in group:
            assert row.speedup is not None
            values[row.job] = base / row.speedup.mean
            if row.speedup.ends and row.speedup.ends[0]:
                low, high = row.speedup.ends
                ranges[row.job] = (base / high, base / low)
    unit, scale = ("s", 1.0) if max(values.values()) >= 10 else ("ms", 1000.0)
    return Cost("time", "Time per picture", unit, scale, values, ranges)


def _latency(row: Row) -> LatencyFile | None:
    return row.run.latency if row.run else None


def _beside(row: Row) -> str:
    """What tells baselines apart: all that went into the timing but the candidate and its cache."""
    record = row.run.read("time", "record.json") if row.run else None
    timed = _latency(row)
    assert timed is not None
    own: dict[str, Any] = {"steps": timed.steps, "batch_size": timed.batch_size, "runtime": timed.runtime}
    identity = (record or {}).get("identity") or own
    config = {k: v for k, v in identity.get("config", {}).items() if k != "cache"}
    inputs = {k: v for k, v in identity.get("inputs", {}).items() if k != "subject"}
    return json.dumps({**identity, "config": config, "inputs": inputs}, sort_keys=True)


def machines(rows: list[Row]) -> list[str]:
    """Those on which a claimed time was taken."""
    from diffopt.text import machine

    timed = [r.run.latency.machine for r in rows if r.seconds and r.run and r.run.latency]
    return list(dict.fromkeys(f"{machine(m)}, host {m.host or '?'}" for m in timed))


RACED = {"work": "Work per picture: weights x computed steps", "memory": "GPU memory of drawing"}
"""Costs that a race knows of its settings."""


def raced(race: RaceFile, name: str) -> Cost | None:
    found = {str(e.number): value for e in race.entries if e.means and (value := e.costs.get(name)) is not None}
    if not found:
        return None
    unit, scale = next((u, s) for u, s in UNITS if max(found.values()) * s >= 1 or u == "B")
    return Cost(name, RACED[name], unit, scale, found)


def _values(rows: list[Row], of: Callable[[Row], float | None]) -> dict[str, float]:
    return {r.job: value for r in rows if r.distinct and (value := of(r)) is not None}
