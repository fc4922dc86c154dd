"""The page of a sweep: what to ship, the grid, the Pareto front, what was shared, a row a job, and pictures to compare."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from diffopt import answer, results
from diffopt.cost import machines
from diffopt.errors import ConfigError
from diffopt.figure import digits
from diffopt.findings import Findings
from diffopt.floor import Floor, floors
from diffopt.page import PAGE, publish, render
from diffopt.plotted import plotted
from diffopt.strips import strips

MULTIRUN = "multirun.yaml"
"""Hydra's own record of the sweep."""


def stated(directory: Path) -> list[Floor]:
    """The floors that the sweep itself was given, `hydra.callbacks.sweep.floor`."""
    path = directory / MULTIRUN
    given = OmegaConf.select(OmegaConf.load(path), "hydra.callbacks.sweep.floor") if path.is_file() else None
    return floors(given)


def summary(found: Findings) -> list[str]:
    """The sweep in a few lines for the console."""
    accounts, failed = found.accounts, len(found.failed)
    lines = [
        f"sweep   {len(found.rows)} jobs, {found.distinct} distinct"
        + (f", {failed} failed" if failed else "")
        + f"; {accounts.made} artifacts made, {accounts.found} found in the store, {accounts.shared} shared by several jobs"
    ]
    lines += [f"same    {reason.text}" for reason in found.reasons]
    if accounts.saved > 0:
        lines.append(f"time    {accounts.spent:.1f} s of steps; each job alone would have taken {accounts.total:.1f} s in all")
    if found.best and found.first:
        given, apart = found.given(found.best), answer.apart(found)
        lines.append(
            f"best    {found.measured(found.best, found.first)}, job {found.best.job}"
            + (f": {given}" if given else "")
            + (f"; {apart}" if apart else "")
        )
    return lines + [f"floor   {line}" for line in answer.under(found)]


def write(found: Findings) -> Path:
    """Write the sweep's report.html, results.csv and results.json. Returns the page."""
    rows, directory = found.rows, found.directory
    publish(directory / "results.json", results.as_json(found))
    publish(directory / "results.csv", results.as_csv(found))
    metrics = {k: m for r in reversed(rows) for k, m in r.metrics.items()}
    stats = [r.metrics[found.first]["candidate"] for r in rows if found.first in r.metrics]
    ends = [v for s in stats for v in (s["low"], s["mean"], s["high"]) if v is not None]
    text = render(
        "sweep.html",
        found=found,
        name=next((r.run.content["name"] for r in rows if r.run), directory.name),
        directory=directory,
        rows=rows,
        swept=found.swept,
        metrics=metrics,
        decimals={k: min(4, max(digits(r.metrics[k]["candidate"]) for r in rows if k in r.metrics)) for k in metrics},
        first=found.first,
        ends=(min(ends), max(ends)) if ends else (0, 0),
        best=found.best,
        apart=answer.apart(found),
        under=answer.under(found),
        machines=machines(rows),
        plots=plotted(found),
        strips=strips(rows, found.shown),
        notes=list(dict.fromkeys(n for r in rows if r.run for n in r.run.content["notes"])),
        lost=[r.job for r in rows if r.run and r.run.lost],
        pages={r.job: f"{r.job}/{PAGE}" for r in rows if (directory / r.job / PAGE).is_file()},
    )
    return publish(directory / PAGE, text)


class WriteReport(Callback):
    """Writes the sweep's page when the sweep is over, under the floors `floor` that a recipe or the command line states.

    Hydra leaves on_multirun_end out when a job failed, so from the first failure on each job that ends writes the page.
    """

    def __init__(self, floor: Mapping[str, float | str] | Sequence[str] | None = None) -> None:
        self.failed = False
        self.floors = floors(floor)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        first = not self.failed and job_return.status == JobStatus.FAILED
        self.failed |= first
        if self.failed:
            page = write(self._findings(config))
            if first:
                print(f"job {config.hydra.job.num} failed; the sweep goes on, its report is {page}", flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints, as the jobs' logging is taken down by now."""
        found = self._findings(config)
        page = write(found)
        print("\n".join([*summary(found), f"report  {page}"]), flush=True)

    def _findings(self, config: DictConfig) -> Findings:
        """What was made is not to be lost over a floor that cannot be judged."""
        found = Findings(Path(config.hydra.sweep.dir), self.floors)
        try:
            found.check()
        except ConfigError as e:
            print(e, flush=True)
            return Findings(found.directory, [])
        return found
