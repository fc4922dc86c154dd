"""A race by Hydra's launcher: what each round launches, and what is read of its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from diffopt.artifact import Pipeline, Sensitivity
from diffopt.errors import GateError
from diffopt.files.layers import read_layers
from diffopt.files.metrics import MetricResult
from diffopt.files.pipeline import PipelineFile
from diffopt.files.sensitivity import SensitivityFile
from diffopt.groups.eval import OF_GRAPHS
from diffopt.jobs.job import Job, prepare
from diffopt.jobs.plan import Step
from diffopt.jobs.runner import run_plan
from diffopt.race import record, shipped, standing, told
from diffopt.race.contestant import Contestant, Cost
from diffopt.race.costs import Costs, Shares, damage, foreseen, measured, program, simulated, timed
from diffopt.race.course import Course
from diffopt.report.run_directory import RUN, Run
from diffopt.sweep.job_table import ERROR, table
from diffopt.sweep.page import MULTIRUN
from diffopt.sweep.plan import SweepPlan
from diffopt.view import Choices


class Race:
    def __init__(self, config: DictConfig, loader: ConfigLoader, launcher: Launcher, planned: SweepPlan):
        assert planned.ship is not None
        self.config, self.loader, self.launcher, self.ship = config, loader, launcher, planned.ship
        self.directory = Path(config.hydra.sweep.dir)
        self.recipe = [str(o) for o in config.hydra.overrides.task if str(o).startswith("+recipe=")]
        self.jobs: list[Job] = [p.job for p in planned.distinct if p.job]
        self.given = [tuple(o for o in p.overrides if not o.startswith("eval.size=")) for p in planned.distinct]
        self.launched = 0
        self.costs: list[Costs] = [{} for _ in self.jobs]
        self.programs = [program(self.choices(i)) for i in range(len(self.jobs))]
        self.damages: list[float | None] = [None] * len(self.jobs)
        self.shares = Shares()
        self.ran: set[int] = set()
        self.by = self._by()

    def choices(self, number: int) -> Choices:
        return self.jobs[number].choices

    def _by(self) -> str:
        """The cost that stands for what is wanted: of what is simulated no time counts."""
        imitated = any(simulated(self.choices(i)) for i in range(len(self.jobs)))
        stands = {"latency": "work" if imitated else "latency", "memory": "bytes" if imitated else "memory"}
        return stands.get(self.ship.want, self.ship.want)

    def run(self) -> None:
        """Raises GateError where no setting keeps the floors, or full precision does not."""
        self.directory.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.directory / MULTIRUN)
        self._foresee()
        self._time()
        eval = self.choices(0).eval
        assert eval is not None
        field = [Contestant(i, self.given[i], self._cost(i), self.damages[i] or 0.0) for i in range(len(self.jobs))]
        course = Course(self.ship, field, eval.metrics[0])

        def draw(due: list[tuple[Contestant, int]]) -> dict[int, Mapping[str, MetricResult]]:
            told.round(course, due)
            found = self._draw(due)
            self._learn(field)
            return found

        def looked() -> None:
            record.of(self, course, None).write(self.directory)

        course.run(draw, looked)
        answer = standing.chosen(field, costs=course.costs)
        if answer:
            self._finish(field, answer, course.costs)
        kept = record.of(self, course, answer)
        kept.write(self.directory)
        print("\n".join(told.table(kept)), flush=True)
        if answer is None:
            raise GateError(told.none(kept))
        print(shipped.write(self.directory, kept, Run(self.directory / str(answer.number))), flush=True)

    def _foresee(self) -> None:
        """Pin the models, of which there is one for each LoRA scale, and count what the settings' weights take."""
        known: dict[str, tuple[PipelineFile, Any]] = {}
        for i, overrides in enumerate(self.given):
            step = self._step(self.jobs[i], Pipeline.kind)
            if step and step.fingerprint not in known:
                job = self._prepared(overrides)
                loads = [s for s in job.plan.steps if s.kind == Pipeline.kind]
                run_plan(replace(job.plan, steps=loads, wanted=loads), job.choices, job.store, job.sources)
                entry = job.store.entry(loads[-1].kind, loads[-1].fingerprint)
                assert entry is not None
                known[step.fingerprint] = PipelineFile.read(entry.path), read_layers(entry.path)
            if step:
                self.costs[i] |= foreseen(self.choices(i), *known[step.fingerprint])
            self._sense(i)

    def _sense(self, number: int) -> None:
        """What the setting's format does to its layers, once the store has it; `sense=default` makes it."""
        job = self.jobs[number]
        step = self._step(job, Sensitivity.kind)
        if self.damages[number] is None and step and (kept := job.store.entry(step.kind, step.fingerprint)):
            self.damages[number] = damage(self.choices(number), SensitivityFile.read(kept.path))

    def _prepared(self, overrides: Sequence[str]) -> Job:
        asked = [*self.recipe, *overrides, f"eval.size={self.ship.rounds[0]}"]
        full = self.loader.load_sweep_config(self.config, asked)
        own = OmegaConf.masked_copy(full, [str(k) for k in full if k != "hydra"])
        return prepare(own, list(overrides), dry=False, sweep=True)

    def _step(self, job: Job, kind: str) -> Step | None:
        return next((s for s in job.plan.steps if s.kind == kind), None)

    def _time(self) -> None:
        """Time each distinct program once, where the runtime has its kernels and times are wanted."""
        asked = [i for i in range(len(self.jobs)) if self._timed(i)]
        if not asked:
            return
        told.timing(len(asked))
        few = f"eval.size={self.ship.rounds[0]}"
        self._launch([(i, [*self._less(i), "eval.metrics=[]", few]) for i in asked])
        found = timed(table(self.directory))
        of = {self.programs[i]: str(i) for i in asked}
        for i, costs in enumerate(self.costs):
            if (job := of.get(self.programs[i])) in found:
                costs["latency"] = found[job]
        if self.by == "latency" and not any("latency" in costs for costs in self.costs):
            error = next(
                (e.read_text().splitlines()[0] for e in self.directory.glob(f"*/{ERROR}")), "times of machines that differ"
            )
            raise GateError(f"ship.want: no setting could be timed (got {error}); mend that, or want bytes or steps")

    def _timed(self, number: int) -> bool:
        """Whether it is the setting whose time is taken for its program's."""
        eval = self.choices(number).eval
        first = self.programs.index(self.programs[number]) == number
        return first and eval is not None and eval.latency and not simulated(self.choices(number))

    def _less(self, number: int) -> list[str]:
        """What a round leaves out of the setting's job; the answer has it when it is run as it is to be shipped."""
        choices, eval = self.choices(number), self.choices(number).eval
        assert eval is not None
        found = [f"eval.{name}=[]" for name in ("compare", "bench") if getattr(eval, name)]
        found += ["eval.parity=false"] if eval.compares_kernels else []
        found += ["eval.latency=false"] if eval.latency and not self._timed(number) else []
        return [*found, *(["~export"] if choices.export and eval.runtime not in OF_GRAPHS else [])]

    def _cost(self, number: int) -> Cost:
        """Of what is wanted; where it is not known, at least nothing."""
        found = self.costs[number]
        if self.by in found:
            return found[self.by]
        if self.by == "memory":
            return Cost(found["bytes"].value, found["bytes"].low, inf)
        return Cost(inf, 0.0, inf)  # it comes last, and nothing is said of it beside others

    def _draw(self, due: list[tuple[Contestant, int]]) -> dict[int, Mapping[str, MetricResult]]:
        jobs = []
        for one, many in due:
            jobs.append((one.number, [*self._less(one.number), f"eval.size={many}"]))
        self._launch(jobs)
        self.ran |= {c.number for c, _ in due}
        return {c.number: run.metrics for c, _ in due if (run := self._result(c.number)) is not None}

    def _result(self, number: int) -> Run | None:
        """None of a job that failed."""
        folder = self.directory / str(number)
        return Run(folder) if (folder / RUN).is_file() and not (folder / ERROR).is_file() else None

    def _launch(self, jobs: list[tuple[int, list[str]]]) -> None:
        given = [[*self.recipe, *self.given[n], *more, f"hydra.sweep.subdir={n}"] for n, more in jobs]
        for done in self.launcher.launch(given, initial_job_idx=self.launched):
            _ = done.return_value  # raises what a job has not caught itself
        self.launched += len(jobs)

    def _learn(self, field: Sequence[Contestant]) -> None:
        """What the runs of this race have shown of costs; what an earlier one has left in the directory changes no order."""
        for number in sorted(self.ran):
            run, eval = self._result(number), self.choices(number).eval
            if run is not None and eval is not None:
                self.costs[number] |= measured(run, eval.steps)
                if run.images.cache:
                    self.shares.add(self.choices(number), run.images.cache.computed)
        for one in field:
            if one.number not in self.ran and "bytes" in self.costs[one.number]:
                known = self.costs[one.number]["bytes"]
                self.costs[one.number]["work"] = self.shares.work(self.choices(one.number), known)
            self._sense(one.number)
            one.cost, one.damage = self._cost(one.number), self.damages[one.number] or 0.0

    def _finish(self, field: Sequence[Contestant], answer: Contestant, costs: bool) -> None:
        """Run the answer as it is to be shipped: with what the rounds left out."""
        told.last(answer)
        self._launch([(answer.number, [f"eval.size={answer.n}"])])
        if self._result(answer.number) is None:
            error = (self.directory / str(answer.number) / ERROR).read_text().splitlines()[0]
            raise GateError(
                f"ship: setting {answer.number} won, but failed as it is to be shipped (got {error}); mend that, the same "
                "command goes on"
            )
