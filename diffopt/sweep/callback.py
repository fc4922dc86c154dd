"""Hydra's callback of a sweep: plans it before its jobs run, and writes its page afterwards.

Hydra makes one in a single run too, so what a sweep takes is imported by its methods.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from diffopt.errors import ConfigError, DiffoptError
from diffopt.files.race import RaceFile
from diffopt.machine import output, worker
from diffopt.quality.floor import floors
from diffopt.sweep.untouched import Untouched

if TYPE_CHECKING:
    from diffopt.sweep.findings import Findings
    from diffopt.sweep.plan import SweepPlan


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
    began: ClassVar[Untouched | None] = None
    """The directory of a single run before it."""
    over: ClassVar[Path | None] = None
    """The directory of a sweep that has come to its end in this process, until `check` has looked at it."""

    def __init__(self, floor: Mapping[str, float | str] | Sequence[str] | None = None) -> None:
        self.floors = floors(floor)
        self.planned: SweepPlan | None = None
        """The sweep that runs."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            WriteReport.began = Untouched.of(Path(config.hydra.run.dir).absolute())
        except Exception as e:
            raise Refused(e) from None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raises Refused for a sweep that is no use; nothing has been written then."""
        from diffopt.sweep.plan import join, plan_sweep

        try:
            worker.announce()
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            self.planned = plan_sweep(config, hydra.config_loader)
            print(self.planned.summary, flush=True)
            if self.planned.optimized:
                output.optuna()
            join(config)
        except Exception as e:
            raise Refused(e) from None
        WriteReport._running = (self, config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints, as the jobs' logging is taken down by now."""
        from diffopt.sweep.page import summary, write

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
        from diffopt.sweep.job_table import ERROR, table

        directory, cls.over = cls.over, None
        if (directory / RaceFile.NAME).is_file():
            return  # a setting that cannot be drawn has left the race
        rows = table(directory)
        kept = {r.job: directory / r.job / ERROR for r in rows}  # a job that broke a gate has a result beside its error
        errors = {r.job: r.error or kept[r.job].read_text() for r in rows if r.error or kept[r.job].is_file()}
        for job, error in list(errors.items())[:1]:
            said = error.splitlines()[0]
            raise DiffoptError(
                f"sweep: {len(errors)} of {len(rows)} jobs failed (got of job {job}: {said}); the page has every "
                "error, the same command tries these again and takes the rest from the store"
            )

    def _findings(self, config: DictConfig) -> "Findings":
        """What was made is not to be lost over a floor that cannot be judged."""
        from diffopt.sweep.findings import Findings

        ship = self.planned and self.planned.ship
        stated = ship.floors if ship else self.floors
        found = Findings(Path(config.hydra.sweep.dir), stated)
        try:
            found.check()
        except ConfigError as e:
            print(e, flush=True)
            return Findings(found.directory, [])
        return found
