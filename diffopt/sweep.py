"""The page of a sweep: a row a job, which jobs fell together, the best, and pictures to compare."""

import csv
import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from diffopt import quiet, worker
from diffopt.errors import DiffoptError
from diffopt.figure import digits, figure
from diffopt.job_table import Row, swept, table
from diffopt.page import PAGE, publish, render
from diffopt.ranking import artifacts, best, first_metric, front, overlapping
from diffopt.sweep_plan import plan_sweep

STRIP = 8
"""Prompts in the strip of small pictures."""


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
        means = figure(metric["candidate"], metric["unit"])
        lines.append(f"best    {metric['title']} {means}, job {top.job}" + (f": {chosen}" if chosen else ""))
    return lines


def write(directory: Path) -> Path:
    """Write the sweep's report.html, results.csv and results.json. Returns the page."""
    rows = table(directory)
    records = [_record(r) for r in rows]
    publish(directory / "results.json", json.dumps({"schema": "diffopt.sweep/1", "jobs": records}, indent=1))
    lines = [{k: v for k, v in _flat(r).items() if v is not None} for r in records]
    out = StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(k for line in lines for k in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    publish(directory / "results.csv", out.getvalue())
    name, metrics = first_metric(rows), {k: m for r in reversed(rows) for k, m in r.metrics.items()}
    stats = [r.metrics[name]["candidate"] for r in rows if name in r.metrics]
    ends = [v for s in stats for v in (s["low"], s["mean"], s["high"]) if v is not None]
    top = best(rows)
    text = render(
        "sweep.html",
        name=next((r.run.content["name"] for r in rows if r.run), directory.name),
        directory=directory,
        rows=rows,
        swept=swept(rows),
        metrics=metrics,
        decimals={k: min(4, max(digits(r.metrics[k]["candidate"]) for r in rows if k in r.metrics)) for k in metrics},
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
    return publish(directory / PAGE, text)


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


class Refused(BaseException):
    """Carries an error past Hydra, which turns an Exception of a callback into a warning and goes on."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error


class WriteReport(Callback):
    """Plans the sweep before its jobs run, and writes its page when it is over, or was interrupted.

    `floor` is what quality the best job must keep, as `clip=-0.5%`.
    """

    _running: "ClassVar[tuple[WriteReport, DictConfig] | None]" = None
    over: ClassVar[Path | None] = None
    """The directory of a sweep that has come to its end in this process, until `check` has looked at it."""

    def __init__(self, floor: Sequence[str] = ()) -> None:
        self.floor = [str(text) for text in floor]

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raises Refused for a sweep that is no use; nothing has been written then."""
        try:
            worker.announce()
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            planned = plan_sweep(config, hydra.config_loader)
            print(planned.summary, flush=True)
            if planned.search:
                quiet.optuna()
        except Exception as e:
            raise Refused(e) from None
        WriteReport._running = (self, config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints, as the jobs' logging is taken down by now."""
        WriteReport._running, WriteReport.over = None, Path(config.hydra.sweep.dir)
        directory = Path(config.hydra.sweep.dir)
        page = write(directory)
        print("\n".join([*summary(directory), f"report  {page}"]), flush=True)

    @classmethod
    def close(cls) -> None:
        """Write the page of a sweep that Hydra left before its end, if a job has begun."""
        if cls._running and any(Path(cls._running[1].hydra.sweep.dir).rglob(".hydra")):
            cls._running[0].on_multirun_end(cls._running[1])

    @classmethod
    def check(cls) -> None:
        """Raises DiffoptError for a sweep that is over, in which jobs failed."""
        if cls.over is None:
            return
        rows, cls.over = table(cls.over), None
        if failed := [r for r in rows if r.error]:
            first = str(failed[0].error).splitlines()[0]
            raise DiffoptError(
                f"sweep: {len(failed)} of {len(rows)} jobs failed (got of job {failed[0].job}: {first}); the page has every "
                "error, the same command tries these again and takes the rest from the store"
            )
