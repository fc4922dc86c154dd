"""The page of a sweep: a row a job, which jobs fell together, and the best."""

import csv
import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from diffopt import report
from diffopt.report import PAGE, RUN, Run

ERROR = "error.txt"
STRIP = 8
"""Prompts in the strip of small pictures."""


@dataclass(frozen=True)
class Row:
    """One job of the sweep."""

    job: str
    """Its directory, relative to the sweep's."""
    overrides: dict[str, str]
    """Without the recipe, which is the run's name."""
    run: Run | None
    error: str | None
    twin: str | None
    """The first job whose wanted artifacts have the same fingerprints: the two fell together."""

    @cached_property
    def wanted(self) -> dict[str, str]:
        """Fingerprint by step name of what the job was for."""
        if not self.run:
            return {}
        steps = {s["name"]: s["fingerprint"] for s in self.run.content["steps"]}
        return {name: steps[name] for name in self.run.content["wanted"]}

    def value(self, key: str) -> str | None:
        """What the job was given for a swept key: its override, or the recipe's own value where that is a single one."""
        if key in self.overrides or not self.run:
            return self.overrides.get(key)
        found = OmegaConf.select(OmegaConf.create(self.run.content["config"]), key)
        return None if found is None or OmegaConf.is_config(found) else str(found)

    @property
    def metrics(self) -> dict[str, Any]:
        return self.run.metrics if self.run else {}

    @property
    def graph(self) -> dict[str, Any] | None:
        """Bytes and share of the graph, or of the plan where only that is there."""
        return (self.run.size_of("export") or self.run.size_of("build")) if self.run else None

    @property
    def seconds(self) -> float | None:
        """The candidate's median per picture."""
        timed = self.run and self.run.latency and self.run.latency.get("candidate")
        return timed["seconds_per_image"]["median"] if timed else None


def table(directory: Path) -> list[Row]:
    """A row for every job under `directory`, in the order of their numbers."""
    found = {p.parent for name in (RUN, ERROR, ".hydra") for p in directory.rglob(name)} - {directory}
    rows: list[Row] = []
    first: dict[tuple[str, ...], str] = {}
    for folder in sorted(found, key=lambda p: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", str(p))]):
        job = str(folder.relative_to(directory))
        run = Run(folder) if (folder / RUN).is_file() else None
        error = None if run else "stopped without a result; its log file is diffopt.log"
        if not run and (folder / ERROR).is_file():
            error = (folder / ERROR).read_text(encoding="utf-8").strip()
        overrides = run.content["overrides"] if run else _composed(folder)
        row = Row(job, dict(_split(o) for o in overrides if _split(o)[0] != "recipe"), run, error, None)
        key = tuple(row.wanted.values())
        twin = first.setdefault(key, job) if key else job
        rows.append(row if twin == job else Row(job, row.overrides, run, error, twin))
    return rows


def _composed(folder: Path) -> list[str]:
    """The overrides of a job that did not come to write its run.json, by Hydra."""
    path = folder / ".hydra" / "overrides.yaml"
    return [str(o) for o in OmegaConf.load(path)] if path.is_file() else []


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+").partition("=")
    return key, value


def swept(rows: list[Row]) -> list[str]:
    """The overridden keys whose values are not the same in every job."""
    keys = dict.fromkeys(k for r in rows for k in r.overrides)
    return [k for k in keys if len({r.overrides.get(k) for r in rows}) > 1]


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


def strips(rows: list[Row]) -> list[dict[str, Any]]:
    """Small pictures to compare, a strip for each set of references: its pairs of one job, and those of every job.

    The prompts are those where the first metric, averaged over the jobs, is worst.
    """
    name = first_metric(rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.run and not row.twin and row.run.images["images"]:
            drawn = next((s["fingerprint"] for s in row.run.content["steps"] if s["name"] == "reference"), "")
            groups.setdefault(drawn, []).append(row)
    found = []
    for group in groups.values():
        runs = [r.run for r in group if r.run]
        ranks: dict[int, int] = {}
        for run in runs:
            for rank, pair in enumerate(run.pairs):
                ranks[pair["number"]] = ranks.get(pair["number"], 0) + rank
        numbers = sorted(sorted(ranks, key=lambda i: ranks[i])[:STRIP] if name else sorted(ranks)[:STRIP])
        pairs = [{p["number"]: p for p in run.pairs} for run in runs]
        jobs = [(row, [p[i] for i in numbers]) for row, p in zip(group, pairs, strict=True)]
        found.append({"reference": jobs[0][1], "jobs": jobs})
    return found


def summary(directory: Path) -> list[str]:
    """The sweep in two lines for the console."""
    rows = table(directory)
    failed, distinct = sum(r.run is None for r in rows), sum(r.run is not None and not r.twin for r in rows)
    count = artifacts(rows)
    lines = [
        f"sweep   {len(rows)} jobs, {distinct} distinct"
        + (f", {failed} failed" if failed else "")
        + f"; {count['made']} artifacts "
        f"made, {count['found']} found in the store, {count['shared']} shared by several jobs"
    ]
    if (top := best(rows)) and (name := first_metric(rows)):
        metric = top.metrics[name]
        chosen = ", ".join(f"{k}={value}" for k in swept(rows) if (value := top.value(k)))
        means = report.figure(metric["candidate"], metric["unit"])
        lines.append(f"best    {metric['title']} {means}, job {top.job}" + (f": {chosen}" if chosen else ""))
    return lines


def write(directory: Path) -> Path:
    """Write the sweep's report.html, results.csv and results.json. Returns the page."""
    rows = table(directory)
    records = [_record(r) for r in rows]
    report.publish(directory / "results.json", json.dumps({"schema": "diffopt.sweep/1", "jobs": records}, indent=1))
    lines = [{k: v for k, v in _flat(r).items() if v is not None} for r in records]
    out = StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(k for line in lines for k in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    report.publish(directory / "results.csv", out.getvalue())
    name, metrics = first_metric(rows), {k: m for r in reversed(rows) for k, m in r.metrics.items()}
    stats = [r.metrics[name]["candidate"] for r in rows if name in r.metrics]
    ends = [v for s in stats for v in (s["low"], s["mean"], s["high"]) if v is not None]
    top = best(rows)
    text = report.render(
        "sweep.html",
        name=next((r.run.content["name"] for r in rows if r.run), directory.name),
        directory=directory,
        rows=rows,
        swept=swept(rows),
        metrics=metrics,
        decimals={k: min(4, max(report.digits(r.metrics[k]["candidate"]) for r in rows if k in r.metrics)) for k in metrics},
        first=name,
        ends=(min(ends), max(ends)) if ends else (0, 0),
        best=top,
        overlapping=overlapping(rows, top) if top else 0,
        front=front(rows),
        count=artifacts(rows),
        strips=strips(rows),
        notes=list(dict.fromkeys(n for r in rows if r.run for n in r.run.content["notes"])),
        pages={r.job: f"{r.job}/{PAGE}" for r in rows if (directory / r.job / PAGE).is_file()},
    )
    return report.publish(directory / PAGE, text)


def _record(row: Row) -> dict[str, Any]:
    speedup = row.run.speedup if row.run else None
    return {
        "job": row.job,
        "recipe": row.run.content["name"] if row.run else None,
        "overrides": row.overrides,
        "metrics": {name: m["candidate"] for name, m in row.metrics.items()},
        "graph_bytes": row.graph["bytes"] if row.graph else None,
        "seconds_per_image": row.seconds,
        "speedup": speedup,
        "fell_together_with": row.twin,
        "wanted": row.wanted,
        "error": row.error,
    }


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


class WriteReport(Callback):
    """Writes the sweep's page when the sweep is over.

    Hydra leaves on_multirun_end out when a job failed, so from the first failure on each job that ends writes the page.
    """

    def __init__(self) -> None:
        self.failed = False

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        directory = Path(config.hydra.sweep.dir)
        first = not self.failed and job_return.status == JobStatus.FAILED
        self.failed |= first
        if self.failed:
            page = write(directory)
            if first:
                print(f"job {config.hydra.job.num} failed; the sweep goes on, its report is {page}", flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints, as the jobs' logging is taken down by now."""
        directory = Path(config.hydra.sweep.dir)
        page = write(directory)
        print("\n".join([*summary(directory), f"report  {page}"]), flush=True)
