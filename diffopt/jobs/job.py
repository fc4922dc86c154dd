"""One job: a composed config through validation, plan, checks and run, to its report."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from diffopt.artifact import Pipeline
from diffopt.errors import ConfigError, PlanError
from diffopt.files.pipeline import PipelineFile
from diffopt.groups import PICKS
from diffopt.groups.validate import choose, unresolved
from diffopt.jobs import objective, schedule
from diffopt.jobs.checks import reasons
from diffopt.jobs.cost import Cost, cost
from diffopt.jobs.memory import Need
from diffopt.jobs.nearest import Past
from diffopt.jobs.needs import needs
from diffopt.jobs.plan import Plan, Step, idle_overrides, make_plan
from diffopt.jobs.preflight import foresee
from diffopt.jobs.warnings import warnings
from diffopt.machine import progress
from diffopt.machine.environment import Environment
from diffopt.quality.limit import Limit
from diffopt.report.run_directory import Run
from diffopt.stage import stages
from diffopt.store import live
from diffopt.store.source import Sources
from diffopt.store.store import Store
from diffopt.view import Choices

log = logging.getLogger("diffopt")


@dataclass(frozen=True)
class Job:
    """What is to be made, and where."""

    choices: Choices
    plan: Plan
    store: Store
    sources: Sources
    yaml: str
    """The recipe as composed, the answer to what was asked for."""
    starts: bool = False
    """Whether a run of it does, which may load torch for what is foretold."""

    @cached_property
    def todo(self) -> list[Step]:
        """The steps to run."""
        from diffopt.jobs.runner import missing

        found = missing(self.plan, self.store)
        return [s for s in self.plan.steps if s in found]

    @cached_property
    def past(self) -> Past:
        """What the store has."""
        return Past(self.store)

    @cached_property
    def pinned(self) -> Pipeline | None:
        """The model, where it was pinned before."""
        loads = [s for s in self.plan.steps if s.kind == Pipeline.kind and not s.pending]
        entry = next((e for s in loads if (e := self.store.entry(s.kind, s.fingerprint))), None)
        return Pipeline(entry.path, entry.fingerprint) if entry and (entry.path / PipelineFile.NAME).is_file() else None

    @cached_property
    def needs(self) -> dict[str, Need]:
        """What the rule tells of their memory, by fingerprint."""
        return needs(self.plan, self.todo, self.choices, self.pinned, self.sources.at_hand, starts=self.starts)

    @cached_property
    def cost(self) -> Cost:
        """What they would take."""
        return cost(self.todo, self.past, self.needs)

    @cached_property
    def warnings(self) -> list[str]:
        """What may go wrong with them, a line each."""
        return warnings([self.choices], self.todo, self.cost, self.store.disk)


def spelled(override: str) -> str:
    """`calib=null`, which the YAML says of a group that is not chosen, in Hydra's own spelling: `~calib`."""
    group, _, value = override.partition("=")
    return f"~{group}" if group in PICKS and value == "null" else override


def prepare(config: DictConfig, overrides: list[str], *, dry: bool, sweep: bool, sources: Sources | None = None) -> Job:
    """Validate and plan. Raises ConfigError or PlanError before anything has been written.

    `overrides` are those of the command line: in a single run one without an effect is refused. `dry` asks no
    network and hashes little, and leaves unresolved what would need it. `sources` are those of another job.
    """
    overrides = [o.partition("=")[0] if o.startswith("~") else o for o in overrides]  # `~calib=null`: Hydra's sweepers' way
    visible = OmegaConf.masked_copy(config, [str(k) for k in config if k != "hydra"])
    try:
        plain: Any = OmegaConf.to_container(visible, resolve=True)
    except OmegaConfBaseException as e:
        raise ConfigError(unresolved(e)) from None
    for group in PICKS:
        # A recipe's values for it may still be there; without the option they are nothing. A sweep says `~group=null`.
        if {f"~{group}", f"~{group}=null"} & {*overrides}:
            plain[group] = None
    if isinstance(plain.get("recipe"), dict):
        raise ConfigError("recipe: its first line is not `# @package _global_` (got it in a package of its own); add that line")
    if all(plain.get(group) is None for group in PICKS):
        raise ConfigError(
            "recipe: picks nothing, or there is none (got no option of any group); name one with +recipe=NAME, "
            "`diffopt ls recipe` lists them; one of your own begins with `# @package _global_` and has picks"
        )
    if plain.get("ship") is not None and not sweep:
        raise ConfigError(
            "ship: is found by a race over several settings (got a single run); leave hydra.mode as the recipe has it, or set "
            "ship=null"
        )
    choices = choose(plain)
    if choices.model is None:
        raise PlanError("model: none is chosen (got null); choose model=OPTION, `diffopt ls model` lists them")
    objective.check(plain.get("objective"), choices)
    environment = Environment()
    refused = reasons(choices, environment)
    dry = dry or bool(refused)  # no hub is asked for what will not run
    store = Store.at(plain["store"])
    unwritable = store.trouble()
    if unwritable and not (os.path.isdir(store.root) and store.entries()):
        raise unwritable
    if not dry and not unwritable:
        store.open()
    sources = sources or Sources(store.sources, dry, tuple(s.sources for s in store.shared))
    try:
        plan = make_plan(choices, stages(), environment, sources.digest)
    except (PlanError, ValidationError) as e:  # the second of a view of what was refused, such as a search between 3 and 2
        if refused:  # of choices that do not go together no plan tells more
            raise PlanError("\n".join(refused)) from e
        raise
    if reach := schedule.planned(choices):
        plan = replace(plan, notes=[*plan.notes, *reach])
    if refused and any(line.startswith("model") for line in refused):  # whose files cannot be looked at then
        raise PlanError("\n".join(refused))
    job = Job(choices, plan, store, sources, OmegaConf.to_yaml(visible), not dry)
    found = [] if sweep else idle_overrides(plan, choices, overrides)
    refused += _others([*found, *_foreseen(job)], refused)
    if refused:
        raise _with_warnings(PlanError("\n".join(refused)), [] if sweep else replace(job, starts=False).warnings)
    if unwritable and job.todo:
        raise unwritable
    return job


def _with_warnings(error: PlanError, lines: list[str]) -> PlanError:
    """What is no error is told beside it."""
    for line in lines:
        error.add_note(f"warning: {line}")
    return error


def _others(found: list[str], said: list[str]) -> list[str]:
    """Of what was found those lines that are of another group than what is said already: one mistake is told once."""
    groups = {line.partition(":")[0].partition(".")[0] for line in said}
    return [line for line in found if line.partition(":")[0].partition(".")[0] not in groups]


def _foreseen(job: Job) -> list[str]:
    """What the run would refuse when it has pinned the model, as far as it is known before; of a run that makes something."""
    if all(step.kind == Pipeline.kind for step in job.todo):
        return []
    return foresee(job.choices, job.pinned, job.store.disk, job.sources.at_hand)


def _at_hand(job: Job, directory: Path) -> Path | None:
    """The files of the run's model, where they are here."""
    pinned = Run(directory).stored("load", PipelineFile)
    source = job.sources.resolved.get(pinned.source) if pinned else None
    return job.sources.at_hand(source) if source else None


def run(
    config: DictConfig, overrides: list[str], directory: Path, name: str, *, sweep: bool, floors: Sequence[Limit] = ()
) -> float | list[float] | None:
    """Run one job in `directory` and write its page. Returns its objective under the floors, for Hydra's sweepers."""
    from diffopt.jobs.runner import run_plan, write_run
    from diffopt.report import run_page
    from diffopt.report.gate_outcomes import enforce
    from diffopt.shipping import run_card

    if sweep:
        log.info("job %s  %s", directory.name, " ".join(overrides))
    with progress.step("plan"):  # models are hashed, or asked for on the hub
        job = prepare(config, overrides, dry=False, sweep=sweep)
    if job.store.trouble():
        log.info("note: the store cannot be written, so it does not know of this run: its owner's `gc` may remove what it uses")
    else:
        job.store.refer(directory, [(s.kind, s.fingerprint) for s in job.plan.steps])
    with live.running(job.store, directory):
        for note in job.plan.notes:
            log.info("note: %s", note)
        for line in [*(f"warning: {w}" for w in job.warnings), *(job.cost.start() if job.todo else [])]:
            log.info("%s", line)
        done = run_plan(job.plan, job.choices, job.store, job.sources, {e.name: e for e in job.cost.each})
        if done and done[-1].state == "helped":  # the first machine writes the page, perhaps into this same directory
            return None
        write_run(directory, name, overrides, job.yaml, job.plan, done, job.store)
        with progress.step("report"):
            run_card.write(Run(directory), _at_hand(job, directory))
            page = run_page.write(directory)
        for line in [*run_page.summary(directory), f"report  {os.path.relpath(page)}"]:
            log.info("%s", line)
        enforce(Run(directory))
    return objective.of(Run(directory), config.get("objective"), floors)
