"""The jobs of a sweep as rows: what each was given, what it made, and which fell together."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from diffopt.files.interval import Interval
from diffopt.files.metrics import MetricResult
from diffopt.report.form import Form
from diffopt.report.run_directory import RUN, Run

ERROR = "error.txt"


@dataclass(frozen=True)
class Row:
    """One job of the sweep."""

    job: str
    """Its directory, relative to the sweep's."""
    overrides: dict[str, str]
    """Without the recipe, which is the run's name."""
    run: Run | None
    error: str | None
    duplicate_of: str | None
    """The first job whose wanted artifacts have the same fingerprints: the two fell together."""

    @cached_property
    def wanted(self) -> dict[str, str]:
        """Fingerprint by step name of what the job was for."""
        if not self.run:
            return {}
        steps = {s.name: s.fingerprint for s in self.run.content.steps}
        return {name: steps[name] for name in self.run.content.wanted}

    def value(self, key: str) -> str | None:
        """What the job was given for a swept key: its override, or the recipe's own value where that is a single one."""
        if key in self.overrides or not self.run:
            return self.overrides.get(key)
        found = OmegaConf.select(self.composed, key)
        if OmegaConf.is_dict(found):
            found = found.get("name")  # of a group its option's
        return None if found is None or OmegaConf.is_config(found) else str(found)

    @cached_property
    def composed(self) -> Any:
        """The recipe as composed."""
        return OmegaConf.create(self.run.content.config if self.run else "{}")

    @property
    def name(self) -> str:
        """For people: `job 3`."""
        return f"job {self.job}"

    @property
    def distinct(self) -> bool:
        """Whether it came to an end, and no job before it is the same."""
        return self.run is not None and self.duplicate_of is None

    @property
    def metrics(self) -> Mapping[str, MetricResult]:
        return self.run.metrics if self.run else {}

    @property
    def graph(self) -> Form | None:
        """The graph, or of the plan where only that is there."""
        return (self.run.size_of("export") or self.run.size_of("build")) if self.run else None

    @property
    def speedup(self) -> Interval | None:
        """Over its baseline, end to end; None for a simulated format, whatever was timed."""
        return self.run.speedup if self.run and not self.run.images.simulated else None

    @property
    def seconds(self) -> float | None:
        """The candidate's median per picture, where its runtime has the format's kernels."""
        timed = self.run and self.speedup and self.run.latency and self.run.latency.candidate
        return timed.seconds_per_image.median if timed else None


def table(directory: Path) -> list[Row]:
    """A row for every job under `directory`, in the order of their numbers."""
    found = {p.parent for name in (RUN, ERROR, ".hydra") for p in directory.rglob(name)} - {directory}
    rows: list[Row] = []
    first: dict[tuple[str, ...], str] = {}
    for folder in sorted(sorted(found), key=lambda p: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", str(p))]):
        job = str(folder.relative_to(directory))
        run = Run(folder) if (folder / RUN).is_file() else None
        error = None if run else "stopped without a result; its log file is diffopt.log"
        if not run and (folder / ERROR).is_file():
            error = (folder / ERROR).read_text(encoding="utf-8").strip()
        overrides = run.content.overrides if run else _composed(folder)
        row = Row(job, dict(_split(o) for o in overrides if _split(o)[0] != "recipe"), run, error, None)
        key = tuple(row.wanted.values())
        original = first.setdefault(key, job) if key else job
        rows.append(row if original == job else Row(job, row.overrides, run, error, original))
    return rows


def _composed(folder: Path) -> list[str]:
    """The overrides of a job that did not come to write its run.json, by Hydra."""
    path = folder / ".hydra" / "overrides.yaml"
    return [str(o) for o in OmegaConf.load(path)] if path.is_file() else []


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+").partition("=")
    return key, value


def settings(row: Row, keys: list[str]) -> str:
    """What a job was given for the swept `keys`: `calib.alpha=0.8, format=fp8`."""
    return ", ".join(f"{key}={value}" for key in keys if (value := row.value(key)) is not None)


def swept(rows: list[Row]) -> list[str]:
    """The overridden keys whose values are not the same in every job."""
    keys = dict.fromkeys(k for r in rows for k in r.overrides)
    return [k for k in keys if len({r.overrides.get(k) for r in rows}) > 1]
