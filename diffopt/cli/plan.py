"""`diffopt plan`: what would run, what is cached, and why a step would run again."""

import json
import re
from collections.abc import Collection
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from diffopt.cli.arguments import Parser
from diffopt.cli.searchpath import bundled
from diffopt.errors import ConfigError
from diffopt.jobs.cost import downloads
from diffopt.jobs.job import Job, prepare, spelled
from diffopt.jobs.nearest import Past, differences, flat, sources
from diffopt.jobs.plan import Step
from diffopt.text import printable

SHOWN = 3


def parser() -> Parser:
    made = Parser("diffopt plan", description="Show a recipe's steps; runs and writes nothing.")
    made.add_argument("--config-dir", "-cd", help="a directory of your own groups and recipes")
    made.add_argument("--multirun", "-m", action="store_true", help="plan every job of a sweep")
    made.add_argument("--json", action="store_true", help="the same as one JSON object, for programs; of one job")
    made.add_argument("overrides", nargs="*", metavar="+recipe=NAME key=value ...")
    return made


def command(arguments: list[str]) -> None:
    given = parser().parse_intermixed_args(arguments)
    asked = [spelled(o) for o in given.overrides]
    config = composed(asked, sweep=given.multirun)
    if config.hydra.mode == RunMode.MULTIRUN:
        if given.json:
            raise ConfigError("--json: tells of one job (got a sweep); leave out --multirun, or plan the jobs one by one")
        from diffopt.sweep.plan import plan_sweep

        with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
            print(printable(plan_sweep(config, _hydra().config_loader).table()))
        return
    with open_dict(config):
        del config["hydra"]
    overrides = [o for o in asked if not o.startswith("+recipe=")]
    job = prepare(config, overrides, dry=True, sweep=False)
    print(json.dumps(numbers(job), indent=1) if given.json else printable(table(job)))


def composed(overrides: list[str], *, sweep: bool) -> DictConfig:
    """The config that Hydra would run, with its node `hydra`; that of a sweep where it or its recipe is one."""
    with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
        if not sweep:
            config = compose("config", overrides, return_hydra_config=True)
            if config.hydra.mode != RunMode.MULTIRUN:
                return config
        return _hydra().compose_config("config", [*overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN, from_shell=False)


def _hydra() -> Hydra:
    found = GlobalHydra.instance().hydra
    assert found is not None
    return found


def table(job: Job) -> str:
    """A line a step, or a run of chunks: name, fingerprint, state, and where it runs again, why. Then what that costs."""
    rows = folded([(step, *_state(step, job)) for step in job.plan.steps])
    width = max(len(name) for name, *_ in rows)
    lines = [f"{name:{width}}  {key:16}  {state:8}  {why}".rstrip() for name, key, state, why in rows]
    lines += [f"note: {n}" for n in job.plan.notes]
    lines += [f"warning: {line}" for line in job.warnings]
    if job.todo:
        lines += ["", *(f"  {row}" for row in job.cost.rows())] if job.cost.peak else []
        lines += ["", *job.cost.lines(job.store.root), *downloads(job.todo), ""]
    lines.append(f"{len(job.plan.steps)} steps, {len(job.todo)} to run; store {job.store.root}")
    return "\n".join(lines)


def numbers(job: Job) -> dict[str, Any]:
    """The same for programs: bytes, seconds, and null for what is not known."""
    by_name = {e.name: e for e in job.cost.each}
    steps = []
    for step in job.plan.steps:
        state, why = _state(step, job)
        about = by_name.get(step.name)
        foretold = {n: getattr(about, n) for n in ("seconds", "ram", "gpu", "disk", "recorded")} if about else {}
        key = None if step.pending else step.fingerprint
        steps.append({"name": step.name, "kind": step.kind, "fingerprint": key, "state": state, "why": why, **foretold})
    total = {"seconds": job.cost.seconds, "disk": job.cost.bytes, "peak": job.cost.peak, "untold": job.cost.untold}
    more = {"notes": job.plan.notes, "warnings": job.warnings, "downloads": downloads(job.todo)}
    return {"schema": "diffopt.plan/1", "store": str(job.store.root), "steps": steps, "total": total, **more}


def _state(step: Step, job: Job) -> tuple[str, str]:
    """And why."""
    if step.pending:
        return "pending", "its source was never resolved; running resolves it"
    if step in job.todo:
        return "to run", reason(step, job.todo, job.past)
    return ("cached", "") if job.store.has(step.kind, step.fingerprint) else ("spare", "nothing to run needs it")


def folded(rows: list[tuple[Step, str, str]]) -> list[tuple[str, str, str, str]]:
    """Name, fingerprint, state and reason; the chunks of a stage that are in one state for one reason are one row."""
    groups: list[list[tuple[Step, str, str]]] = []
    for row in rows:
        last = groups[-1][-1] if groups else None
        if last and _follows(last[0], row[0]) and _alike(last) == _alike(row):
            groups[-1].append(row)
        else:
            groups.append([row])
    found = []
    for group in groups:
        (step, state, why), many = group[0], len(group)
        name = step.name if many == 1 else f"{step.name}-{group[-1][0].name.partition('.')[2]}"
        key = "-" * 16 if step.pending else step.fingerprint if many == 1 else f"{many} artifacts"
        found.append((name, key, state, why))
    return found


def _follows(one: Step, other: Step) -> bool:
    """Whether they are chunks of one stage, the one after the other."""
    (name, _, number), (next_name, _, next_number) = one.name.partition("."), other.name.partition(".")
    return name == next_name and number.isdigit() and next_number.isdigit() and int(next_number) == int(number) + 1


def _alike(row: tuple[Step, str, str]) -> tuple[str, str]:
    """State and reason; chunks differ in the values of settings, as in their prompts, and not in which."""
    return row[1], re.sub(r"'[^']*' -> '[^']*'|\d+ -> \d+|\.\d+\b", "", row[2])


def reason(step: Step, todo: Collection[Step], past: Past) -> str:
    """Why the step is not in the store: what differs from the artifact of the same stage that is most like it."""
    near = past.nearest(step)
    if near is None:
        return "never made"
    if not near.same_model and sources(step):
        return "never made of this model"
    ours, theirs = flat(step.identity), flat(near.entry.record["identity"])
    settings = [k for k in near.own if not k.startswith("inputs.")]
    own = differences({k: theirs.get(k) for k in settings}, {k: ours.get(k) for k in settings})
    lines = own[:SHOWN] + ([f"and {len(own) - SHOWN} more"] if len(own) > SHOWN else [])
    others = [*near.inputs, *(k.split(".")[1] for k in near.own if k.startswith("inputs."))]
    if others or not lines:
        given = [p for p in _given(step, others) if p.fingerprint not in near.entry.inputs]
        for what, after, some in (
            ("new", "", [p for p in given if p in todo]),
            ("another", " than before", [p for p in given if p not in todo]),
        ):
            lines += [f"{what} {_named(some)}{after}"] if some else []
    return "; ".join(lines) or "another input"


def _named(steps: list[Step]) -> str:
    """Their names, those of chunks that follow each other as one."""
    rows = folded([(step, "", "") for step in steps])
    return ", ".join(sorted(name for name, *_ in rows))


def _given(step: Step, inputs: list[str]) -> list[Step]:
    """The steps that are these inputs of a step."""
    found: list[Step] = []
    for name in inputs:
        value = step.inputs.get(name)
        found += value if isinstance(value, list) else [value] if value else []
    return found
