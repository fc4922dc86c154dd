"""The page of a sweep: what to ship, the grid, the Pareto front, what was shared, a row a job, and pictures to compare."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from diffopt import answer, quiet, results, worker
from diffopt.cost import machines
from diffopt.errors import ConfigError, DiffoptError
from diffopt.figure import digits
from diffopt.findings import Findings
from diffopt.floor import Floor, floors
from diffopt.job_table import ERROR, table
from diffopt.page import PAGE, publish, render
from diffopt.plotted import plotted
from diffopt.strips import strips
from diffopt.sweep_plan import plan_sweep

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


class Refused(BaseException):
    """Carries an error past Hydra, which turns an Exception of a callback into a warning and goes on."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error


class WriteReport(Callback):
    """Plans the sweep before its jobs run, and writes its page when it is over, or was interrupted.

    `floor` is what quality the best job must keep, as a recipe or the command line states it.
    """

    _running: "ClassVar[tuple[WriteReport, DictConfig] | None]" = None
    over: ClassVar[Path | None] = None
    """The directory of a sweep that has come to its end in this process, until `check` has looked at it."""

    def __init__(self, floor: Mapping[str, float | str] | Sequence[str] | None = None) -> None:
        self.floors = floors(floor)

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
        found = self._findings(config)
        page = write(found)
        print("\n".join([*summary(found), f"report  {page}"]), flush=True)

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
        directory, cls.over = cls.over, None
        rows = table(directory)
        kept = {r.job: directory / r.job / ERROR for r in rows}  # a job that broke a gate has a result beside its error
        errors = {r.job: r.error or kept[r.job].read_text() for r in rows if r.error or kept[r.job].is_file()}
        for job, error in list(errors.items())[:1]:
            said = error.splitlines()[0]
            raise DiffoptError(
                f"sweep: {len(errors)} of {len(rows)} jobs failed (got of job {job}: {said}); the page has every "
                "error, the same command tries these again and takes the rest from the store"
            )

    def _findings(self, config: DictConfig) -> Findings:
        """What was made is not to be lost over a floor that cannot be judged."""
        found = Findings(Path(config.hydra.sweep.dir), self.floors)
        try:
            found.check()
        except ConfigError as e:
            print(e, flush=True)
            return Findings(found.directory, [])
        return found
