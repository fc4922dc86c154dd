"""A sweep before it runs: its jobs, which of them fall together, what each alone would cost and what they share. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf, open_dict

from diffopt.artifact import Bench, Latency
from diffopt.errors import ConfigError, DiffoptError, PlanError
from diffopt.groups import PICKS
from diffopt.groups.ship import Ship, read
from diffopt.jobs.cost import cost, downloads
from diffopt.jobs.job import Job, prepare
from diffopt.jobs.memory import Need
from diffopt.jobs.nearest import Past
from diffopt.jobs.plan import Step, idle
from diffopt.jobs.warnings import warnings
from diffopt.machine import environment, worker
from diffopt.runtimes import RUNTIMES
from diffopt.store.source import Sources
from diffopt.store.store import Store

MANY = 512
"""Points of a search's space that are planned; of more, every n-th."""

EXTRAS = {"joblib": "joblib", "submitit_launcher": "submitit", "ray": "ray", "optuna": "optuna"}
"""What a plugin's name has in it, and the extra of diffopt that installs it."""


@dataclass(frozen=True)
class Planned:
    """One job: planned, or refused."""

    overrides: tuple[str, ...]
    """Without the recipe."""
    job: Job | None
    error: str | None = None
    here: bool = False
    """Whether the error may be of this machine only."""

    @cached_property
    def wanted(self) -> tuple[str, ...]:
        """Fingerprints of what it is for; equal ones fall together."""
        return tuple(s.fingerprint for s in self.job.plan.wanted) if self.job else ()


@dataclass(frozen=True)
class SweepPlan:
    jobs: list[Planned]
    """In the order of their numbers; for a search, which chooses its jobs as it goes, a job for each point of its space."""
    optimized: bool
    ship: Ship | None = None
    """Of a race."""

    @property
    def planned(self) -> list[Planned]:
        return [j for j in self.jobs if j.job]

    @property
    def distinct(self) -> list[Planned]:
        """Of the jobs that fall together the first."""
        found: dict[tuple[str, ...], Planned] = {}
        for job in self.planned:
            found.setdefault(job.wanted, job)
        return list(found.values())

    @property
    def summary(self) -> str:
        if self.optimized:
            given = {o for j in self.jobs for o in j.overrides}
            searched = [key for key, many in Counter(o.partition("=")[0] for o in given).items() if many > 1]
            return f"sweep   a search over {', '.join(sorted(searched)) or 'nothing'}"
        refused = len(self.jobs) - len(self.planned)
        if self.ship:
            rounds = ", ".join(map(str, self.ship.rounds))
            told = f" of {rounds} prompts" + (f", {refused} settings refused" if refused else "")
            return f"race    {len(self.distinct)} distinct settings of {len(self.jobs)}, in rounds{told}"
        return f"sweep   {len(self.jobs)} jobs, {len(self.distinct)} distinct" + (f", {refused} refused" if refused else "")

    def errors(self) -> list[str]:
        """Each line of the refused jobs' errors once, with how many have it."""
        lines = Counter(line for j in self.jobs if j.error for line in j.error.splitlines())
        return [line if n == len(self.jobs) else f"{n} of {len(self.jobs)} jobs: {line}" for line, n in lines.items()]

    def table(self) -> str:
        """A row for each job, one for each stage, and a summary: what would run, and how often a sweep saves it."""
        if not self.planned:
            return "\n".join(self.errors())
        store = self.planned[0].job.store  # type: ignore[union-attr]
        first: dict[tuple[str, ...], int] = {}
        rows, users, todo = [], Counter[Step](), set()
        steps: dict[str, Step] = {}
        needs: dict[str, Need] = {}
        for number, planned in enumerate(self.jobs):
            label = f"{'point' if self.optimized else 'job'} {number:<4} {' '.join(planned.overrides)}"
            if planned.job is None:
                rows.append((label, f"refused: {str(planned.error).splitlines()[0]}"))
                continue
            own = {steps.setdefault(s.fingerprint, s) for s in planned.job.plan.steps}
            users.update(own)
            runs = {steps[s.fingerprint] for s in planned.job.todo}
            if not {s.fingerprint for s in runs} <= {*needs}:
                needs = planned.job.needs | needs
            todo |= runs
            original = first.setdefault(planned.wanted, number)
            state = (
                f"as job {original}" if original != number else f"{len(runs)} of {len(own)} steps to run" if runs else "cached"
            )
            rows.append((label, state))
        width = max(len(label) for label, _ in rows)
        lines = [f"{label:{width}}  {state}" for label, state in rows]
        lines += ["", f"{'stage':12} {'distinct':>8} {'to run':>7} {'one by one':>11}"]
        for name in dict.fromkeys(s.stage.name for s in steps.values()):
            mine = [s for s in steps.values() if s.stage.name == name]
            lines.append(f"{name:12} {len(mine):8} {sum(s in todo for s in mine):7} {sum(users[s] for s in mine):11}")
        lines += self.errors()
        needed = [s for s in steps.values() if s in todo]
        if needed:
            spent = cost(needed, Past(store), needs)
            said = warnings([j.job.choices for j in self.distinct if j.job], needed, spent, store.disk)
            lines += [*(f"warning: {w}" for w in said), "", *spent.lines(store.root), *downloads(needed)]
        end = f"{len(steps)} steps, {len(todo)} to run, {users.total()} if each job had a store of its own; store {store.root}"
        return "\n".join([*lines, "", f"{self.summary[5:].strip()}; {end}"])


def plan_sweep(config: DictConfig, loader: ConfigLoader) -> SweepPlan:
    """Plan every job of a sweep as Hydra composed it, `config` with its node `hydra`, before any of them runs.

    Raises PlanError for a sweep that is no use: no job can run, or no job reads a value that it was given; and where the
    launcher or the sweeper is not installed. A job alone that cannot run is left to fail in its turn.
    """
    _installed(config)
    ship = raced(config)
    optimized = not str(config.hydra.sweeper._target_).endswith("BasicSweeper") and ship is None
    parsed: list[Override] = []
    grid: list[list[str]] = []
    for part in ship.space if ship and ship.space else [{}]:
        given = _parsed(config, loader, part)
        grid += _points(given) if optimized else BasicSweeper.split_arguments(given, None)[0]
        parsed += given
    if ship:
        grid = [[*overrides, f"eval.size={ship.rounds[0]}"] for overrides in grid]
    store = Store.at(str(config.store))
    sources = Sources(store.sources, True, tuple(s.sources for s in store.shared))
    composed: dict[tuple[str, ...], Any] = {}
    jobs = [_job(config, loader, overrides, composed, sources) for overrides in grid]
    found = SweepPlan(jobs, optimized, ship)
    if not found.planned and not (_elsewhere(config) and any(j.here for j in jobs)):
        raise PlanError("\n".join(found.errors()))
    if found.ship and (unfit := _unfit(found, found.ship)):
        raise PlanError("\n".join(unfit))
    values = {o.get_key_element().lstrip("+~"): o.input_line.partition("=")[2] for o in parsed if o.input_line}
    if lines := [*_idle(found.planned, values), *_timed_in_company(found.planned, config)]:
        raise PlanError("\n".join(lines))
    return found


def raced(config: DictConfig) -> Ship | None:
    """What a race is to find; None where the sweeper is another. Raises ConfigError for what is wrong in it, or is not read."""
    given: Any = OmegaConf.to_container(config, resolve=False)
    if not str(config.hydra.sweeper._target_).endswith("RaceSweeper"):
        if given.get("ship") is not None:
            raise ConfigError(
                f"ship: is found by a race alone (got hydra/sweeper={config.hydra.runtime.choices.get('hydra/sweeper')}); set "
                "hydra/sweeper=race, or ship=null"
            )
        return None
    if any(str(o).startswith("eval.size=") for o in config.hydra.overrides.task):
        raise ConfigError("eval.size: a race draws as many as its rounds say (got it beside ship.rounds); set ship.rounds")
    return read(given.get("ship"))


def _parsed(config: DictConfig, loader: ConfigLoader, part: Mapping[str, Any]) -> list[Override]:
    """What the sweeper and the command line were given, of a race beside a part of its space."""
    given = [f"{k}={v}" for k, v in {**(config.hydra.sweeper.get("params") or {}), **part}.items()]
    given += [str(o) for o in config.hydra.overrides.task]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(given)
    for override in parsed:
        if override.key_or_group in PICKS and "null" in str(override.input_line).partition("=")[2].split(","):
            advice = "write cache=none" if override.key_or_group == "cache" else "sweep over options, and run that one alone"
            raise PlanError(f"{override.key_or_group}: Hydra cannot sweep over null (got {override.input_line}); {advice}")
    return parsed


def _unfit(found: SweepPlan, ship: Ship) -> list[str]:
    """Why there is no race over these settings, a line each."""
    if len(found.distinct) < 2:
        many = f"{len(found.jobs)} settings that come to one" if len(found.jobs) > 1 else "one setting"
        return [f"ship: a race needs two settings at least (got {many}); give more in hydra.sweeper.params or ship.space"]
    lines: list[str] = []
    for job in (j.job for j in found.distinct if j.job):
        eval = job.choices.eval
        if eval is None:
            lines.append("ship: is judged on the evaluation's pictures (got eval=null); choose eval=OPTION")
        else:
            lines += ship.check(eval)
            name = job.choices.format.name if job.choices.format else None
            if ship.want == "latency" and not eval.latency and name in RUNTIMES[eval.runtime].kernels:
                lines.append("eval.latency: is what ship.want=latency asks for (got false); set eval.latency=true")
    return list(dict.fromkeys(lines))


def _installed(config: DictConfig) -> None:
    from hydra.core.plugins import Plugins

    for what in ("launcher", "sweeper"):
        target = str(config.hydra[what]._target_)
        if target not in Plugins.instance().class_name_to_class:
            option = str(config.hydra.runtime.choices.get(f"hydra/{what}"))
            extra = next((e for name, e in EXTRAS.items() if name in target), None)
            advice = f"`pip install 'diffopt[{extra}]'`" if extra else "install its package"
            raise PlanError(f"hydra/{what}: is not installed (got {option}); {advice}")


def _elsewhere(config: DictConfig) -> bool:
    """Whether the jobs run on other machines, which may have what this one has not."""
    return str(config.hydra.launcher._target_).rpartition(".")[2] == "SlurmLauncher" or _joins(config)


ARRIVE = f"{worker.arrive.__module__}.{worker.arrive.__name__}"


def join(config: DictConfig) -> None:
    """Have Ray's launcher join the cluster that is there, and its jobs run where the sweep was started and with its store."""
    if _joins(config):
        init: DictConfig = config.hydra.launcher.ray.init
        with open_dict(init):
            init.setdefault("object_store_memory", None)  # the launcher gives one, which Ray refuses then
            own = OmegaConf.to_container(init.get("runtime_env") or OmegaConf.create({}))
            assert isinstance(own, dict)
            variables = worker.told() | own.get("env_vars", {})
            init.runtime_env = {"worker_process_setup_hook": ARRIVE} | own | {"env_vars": variables}


def _joins(config: DictConfig) -> bool:
    """Whether Ray is not started for the sweep but there already."""
    name = str(config.hydra.launcher._target_).rpartition(".")[2]
    return name == "RayLauncher" and config.hydra.launcher.ray.init.get("address") is not None


def _job(
    config: DictConfig, loader: ConfigLoader, overrides: Sequence[str], composed: dict[tuple[str, ...], Any], sources: Sources
) -> Planned:
    """Composing takes most of the time, so jobs that differ only in values share what their picks compose to."""
    values = [o for o in overrides if o[0] not in "+~" and "." in o.partition("=")[0] and "/" not in o.partition("=")[0]]
    picks = tuple(o for o in overrides if o not in values)
    if picks not in composed:
        full = loader.load_sweep_config(config, list(picks))
        composed[picks] = OmegaConf.masked_copy(full, [str(k) for k in full if k != "hydra"])
    own = composed[picks].copy()
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), own)
    asked = tuple(o for o in overrides if not o.startswith("+recipe="))
    try:
        return Planned(asked, prepare(own, list(asked), dry=True, sweep=True, sources=sources))
    except DiffoptError as e:
        return Planned(asked, None, str(e), isinstance(e, PlanError))


def _points(overrides: list[Override]) -> list[list[str]]:
    """Of a search's space every choice, and the ends of every range."""
    ends = []
    for override in overrides:
        value = override.value()
        if isinstance(value, IntervalSweep):
            both = f"{override.get_key_element()}={value.start},{value.end}"
        elif isinstance(value, RangeSweep):
            listed = list(override.sweep_string_iterator())
            both = f"{override.get_key_element()}={listed[0]},{listed[-1]}"
        else:
            ends.append(override)
            continue
        ends += OverridesParser.create().parse_overrides([both])
    found = BasicSweeper.split_arguments(ends, None)[0]
    return found[:: -(-len(found) // MANY)]


def _idle(jobs: list[Planned], values: dict[str, str]) -> Iterator[str]:
    """A line for each key that has no effect in any of the jobs."""
    idle_in: Counter[str] = Counter()
    why: dict[str, tuple[str, str]] = {}
    for job in (j.job for j in jobs if j.job):
        found = idle(job.plan, job.choices, values)
        idle_in.update(found.keys())
        why |= found
    for key, (reason, advice) in why.items():
        if idle_in[key] == len(jobs):
            many = f", and so in every one of the {len(jobs)} jobs" if len(jobs) > 1 else ""
            yield f"{key}: {reason}{many} (got {values[key]}); {advice}"


def _timed_in_company(jobs: list[Planned], config: DictConfig) -> Iterator[str]:
    """Latency beside other jobs on the same cores is of no machine. On GPUs each job has its own."""
    launcher = config.hydra.launcher
    local = str(launcher._target_).rpartition(".")[2] in (*worker.LOCAL, "RayLauncher") and not _elsewhere(config)
    many = int(launcher.get("n_jobs") or worker.jobs())
    if local and not environment.gpus() and many > 1 and len(jobs) > 1:
        there = {s.kind for j in jobs if j.job for s in j.job.plan.wanted}
        for kind, field, off in ((Latency.kind, "eval.latency", "false"), (Bench.kind, "eval.bench", "[]")):
            if kind in there:
                yield (
                    f"{field}: cannot be measured while other jobs run on the same cores (got "
                    f"hydra/launcher={config.hydra.runtime.choices.get('hydra/launcher')}); set {field}={off}, or "
                    f"{worker.JOBS}=1 in the environment"
                )
