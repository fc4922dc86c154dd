"""What `diffopt.run` returns: a run that has ended, as Python takes hold of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from diffopt.files.interval import Interval
from diffopt.files.metrics import MetricResult
from diffopt.report.html import PAGE
from diffopt.report.run_directory import Run
from diffopt.report.run_page import summary


@dataclass(frozen=True)
class Outcome:
    """All paths are absolute."""

    directory: Path
    """Of the run, with `run.json`, `diffopt.log` and a link for each step."""

    @property
    def report(self) -> Path:
        """Its page, HTML."""
        return self.directory / PAGE

    @cached_property
    def artifacts(self) -> Mapping[str, Path]:
        """By step, in the order of the plan, the directory in the store: `artifacts["export"] / "model.onnx"`."""
        steps = [s.name for s in Run(self.directory).content.steps if s.state != "spare"]
        return {name: (self.directory / name).resolve() for name in steps}

    @cached_property
    def metrics(self) -> Mapping[str, MetricResult]:
        """By name, `metrics["psnr"].candidate.mean`; empty where nothing was scored."""
        return Run(self.directory).metrics

    @cached_property
    def speedup(self) -> Interval | None:
        """Baseline's time over candidate's, end to end; None where it was not measured."""
        return Run(self.directory).speedup

    def __str__(self) -> str:
        return "\n".join([*summary(self.directory), f"report  {self.report}"])
