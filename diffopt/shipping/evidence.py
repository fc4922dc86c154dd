"""What runs have found of one checkpoint: every run that refers to it, also where it was a further candidate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from diffopt.artifact import Checkpoint, Components, Images
from diffopt.errors import DiffoptError
from diffopt.files.bench import BenchFile
from diffopt.files.images import ImagesFile
from diffopt.files.latency import LatencyFile
from diffopt.files.metrics import MetricsFile
from diffopt.files.run import RunStep
from diffopt.report.gate_outcomes import Outcome, outcomes
from diffopt.report.run_directory import RUN, Run
from diffopt.store.store import Store


@dataclass(frozen=True)
class Evidence:
    """Of one run, and one candidate of it."""

    run: Run
    checkpoint: str
    """Its fingerprint."""
    ending: str
    """Of the candidate's steps: empty for the run's own, `@ptq` for a further one."""

    @property
    def name(self) -> str:
        """Of the run, and when it ended."""
        at = datetime.fromtimestamp((self.run.directory / RUN).stat().st_mtime, UTC)
        further = f", its candidate {self.ending[1:]}" if self.ending else ""
        return f"{self.run.content.name}, {at:%Y-%m-%d %H:%M} UTC{further}"

    @cached_property
    def score(self) -> MetricsFile | None:
        return self.run.stored(f"score{self.ending}", MetricsFile)

    @cached_property
    def images(self) -> ImagesFile:
        return self.run.stored(f"sample{self.ending}", ImagesFile) or ImagesFile()

    @cached_property
    def latency(self) -> LatencyFile | None:
        return self.run.stored("time", LatencyFile) if self._own("time") else None

    @cached_property
    def bench(self) -> BenchFile | None:
        return self.run.stored("bench", BenchFile) if self._own("bench") else None

    @property
    def gates(self) -> list[Outcome]:
        """They judge the run's own candidate."""
        return [] if self.ending else outcomes(self.run)

    def _own(self, step: str) -> bool:
        return not self.ending and checkpoint_of(step, self.run.content.steps) == self.checkpoint


def checkpoint_of(step: str, steps: Sequence[RunStep], kind: str = Checkpoint.kind) -> str | None:
    """The fingerprint of the nearest checkpoint, or other kind, that a step's artifact is made of; None of full precision."""
    named = {s.name: s for s in steps}
    level, seen = [step], {step}
    while level:
        found = [named[n] for n in level if n in named]
        if here := [s.fingerprint for s in found if s.kind == kind]:
            return here[0]
        level = [n for s in found for n in s.inputs if n not in seen]
        seen |= {*level}
    return None


def of_run(run: Run, checkpoint: str, components: str | None = None) -> Iterator[Evidence]:
    """Of its candidates those that are this checkpoint's, the run's own first, drawn with these text encoders in fewer bits or
    with none; nothing of a run that only made it."""
    steps = run.content.steps
    for step in (s for s in steps if s.kind == Images.kind and checkpoint_of(s.name, steps) == checkpoint):
        if checkpoint_of(step.name, steps, Components.kind) == components:
            yield Evidence(run, checkpoint, step.name.removeprefix("sample"))
    drawn = any(s.kind == Images.kind for s in run.content.steps)
    if not drawn and any(checkpoint_of(n, run.content.steps) == checkpoint for n in ("time", "bench")):
        yield Evidence(run, checkpoint, "")


def runs_of(store: Store, checkpoint: str) -> list[Run]:
    """The finished runs that refer to a checkpoint, the newest first."""
    found = []
    for directory, artifacts in store.references():
        run = Run(Path(directory))
        if (Checkpoint.kind, checkpoint) not in artifacts or not (run.directory / RUN).is_file():
            continue
        try:
            steps = {s.fingerprint for s in run.content.steps}
        except DiffoptError:  # of another version
            continue
        if checkpoint in steps:
            found.append(run)
    return sorted(found, key=lambda r: (r.directory / RUN).stat().st_mtime, reverse=True)


def evidence(store: Store, checkpoint: str, components: str | None = None) -> list[Evidence]:
    """What there is of all runs."""
    return [x for run in runs_of(store, checkpoint) for x in of_run(run, checkpoint, components)]
