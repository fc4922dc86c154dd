"""The page of a sweep: what to ship, the grid, the Pareto front, what was shared, a row a job, and pictures to compare."""

import math
from pathlib import Path

from omegaconf import OmegaConf

from diffopt.files.metrics import MetricResult
from diffopt.quality.direction import sign
from diffopt.quality.floor import floors
from diffopt.quality.limit import Limit
from diffopt.report.html import PAGE, render
from diffopt.store.files import publish
from diffopt.sweep import conclusions, results
from diffopt.sweep.cost import machines
from diffopt.sweep.findings import Findings
from diffopt.sweep.page_plots import plotted
from diffopt.sweep.race_table import race_table
from diffopt.sweep.thumbnails import thumbnails
from diffopt.text import digits, number

MULTIRUN = "multirun.yaml"
"""Hydra's own record of the sweep."""


def stated(directory: Path) -> list[Limit]:
    """The floors that the sweep itself was given, `hydra.callbacks.sweep.floor`, or a race, `ship.floor`."""
    path = directory / MULTIRUN
    if not path.is_file():
        return []
    config = OmegaConf.load(path)
    return floors(OmegaConf.select(config, "hydra.callbacks.sweep.floor") or OmegaConf.select(config, "ship.floor"))


def summary(found: Findings) -> list[str]:
    """The sweep in a few lines for the console."""
    savings, failed = found.savings, len(found.failed)
    lines = [
        f"sweep   {len(found.rows)} jobs, {found.distinct} distinct"
        + (f", {failed} failed" if failed else "")
        + f"; {savings.made} artifacts made, {savings.found} found in the store, {savings.shared} shared by several jobs"
    ]
    lines += [f"same    {reason.text}" for reason in found.reasons]
    if savings.saved > 0:
        lines.append(f"time    {savings.spent:.1f} s of steps; each job alone would have taken {savings.total:.1f} s in all")
    if found.best and found.first:
        given, apart = found.given(found.best), conclusions.apart(found)
        lines.append(
            f"best    {found.measured(found.best, found.first)}, job {found.best.job}"
            + (f": {given}" if given else "")
            + (f"; {apart}" if apart else "")
        )
    if slower := conclusions.slower(found):
        lines.append(f"speed   {slower}")
    return lines + [f"floor   {line}" for line in ([] if found.race else conclusions.under(found))]


def _example(metric: MetricResult) -> str:
    """A floor: of a change from the reference a usual one, else the worse end of its interval, which the job itself keeps."""
    if metric.reference:
        return "-0.5%"
    stat, turn = metric.candidate, sign(metric.better)
    places = digits(stat)
    worst = min(turn * x for x in stat.ends or (stat.mean,))
    return number(turn * math.floor(worst * 10**places) / 10**places, places)


def write(found: Findings) -> Path:
    """Write the sweep's report.html, results.csv and results.json. Returns the page."""
    rows, directory = found.rows, found.directory
    publish(directory / "results.json", results.as_json(found))
    publish(directory / "results.csv", results.as_csv(found))
    metrics = {k: m for r in reversed(rows) for k, m in r.metrics.items()}
    stats = [r.metrics[found.first].candidate for r in rows if found.first and found.first in r.metrics]
    ends = [v for s in stats for v in (s.mean, *(s.ends or ()))]
    text = render(
        "sweep.html",
        found=found,
        name=next((r.run.content.name for r in rows if r.run), directory.name),
        directory=directory,
        rows=rows,
        swept=found.swept,
        metrics=metrics,
        decimals={k: min(4, max(digits(r.metrics[k].candidate) for r in rows if k in r.metrics)) for k in metrics},
        first=found.first,
        example=_example(found.best.metrics[found.first]) if found.best and found.first else None,
        ends=(min(ends), max(ends)) if ends else (0, 0),
        best=found.best,
        apart=conclusions.apart(found),
        slower=conclusions.slower(found),
        under=conclusions.under(found),
        race=race_table(found),
        machines=machines(rows),
        plots=plotted(found),
        thumbnails=thumbnails(rows, found.shown),
        notes=list(dict.fromkeys(n for r in rows if r.run for n in r.run.content.notes)),
        lost=[r.job for r in rows if r.run and r.run.lost],
        pages={r.job: f"{r.job}/{PAGE}" for r in rows if (directory / r.job / PAGE).is_file()},
    )
    return publish(directory / PAGE, text)
