"""`diffopt plan`: what would run, what is cached, and why a step would run again."""

from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from diffopt.cli.arguments import Parser
from diffopt.cli.searchpath import bundled
from diffopt.jobs.job import Job, prepare, spelled
from diffopt.jobs.plan import Step
from diffopt.jobs.runner import missing
from diffopt.store.store import Store

SHOWN = 3


def command(arguments: list[str]) -> None:
    parser = Parser("diffopt plan", description="Show a recipe's steps; runs and writes nothing.")
    parser.add_argument("--config-dir", "-cd", help="a directory of your own groups and recipes")
    parser.add_argument("--multirun", "-m", action="store_true", help="plan every job of a sweep")
    parser.add_argument("overrides", nargs="*", metavar="+recipe=NAME key=value ...")
    given = parser.parse_intermixed_args(arguments)
    asked = [spelled(o) for o in given.overrides]
    config = composed(asked, sweep=given.multirun)
    if config.hydra.mode == RunMode.MULTIRUN:
        from diffopt.sweep.plan import plan_sweep

        with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
            print(plan_sweep(config, _hydra().config_loader).table())
        return
    with open_dict(config):
        del config["hydra"]
    overrides = [o for o in asked if not o.startswith("+recipe=")]
    print(table(prepare(config, overrides, dry=True, sweep=False)))


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
    """A line a step: name, fingerprint, state, and where it runs again, why."""
    todo = missing(job.plan, job.store)
    width = max(len(s.name) for s in job.plan.steps)
    rows = []
    for step in job.plan.steps:
        if step.pending:
            rows.append(f"{step.name:{width}}  {'-' * 16}  pending   its source was never resolved; running resolves it")
        elif step in todo:
            rows.append(f"{step.name:{width}}  {step.fingerprint}  to run    {reason(step, todo, job.store)}")
        elif job.store.entry(step.kind, step.fingerprint):
            rows.append(f"{step.name:{width}}  {step.fingerprint}  cached")
        else:
            rows.append(f"{step.name:{width}}  {step.fingerprint}  spare     nothing to run needs it")
    runs = len(todo)
    rows += [f"note: {n}" for n in job.plan.notes]
    rows.append(f"{len(job.plan.steps)} steps, {runs} to run; store {job.store.root}")
    return "\n".join(rows)


def reason(step: Step, todo: set[Step], store: Store) -> str:
    """Why the step is not in the store: what differs from the most similar artifact of the same stage."""
    changed = sorted(p.name for p in step.parents() if p in todo)
    past = [e.record["identity"] for e in store.entries(step.kind) if e.record["identity"]["stage"] == step.stage.name]
    if not past:
        return "never made"
    ours = flat(step.identity)
    best = min((differences(flat(theirs), ours) for theirs in past), key=len)
    own = [d for d in best if not d.startswith("inputs.")]
    lines = own[:SHOWN] + ([f"and {len(own) - SHOWN} more"] if len(own) > SHOWN else [])
    if len(own) < len(best) or not best:
        lines.append(f"new {', '.join(changed)}" if changed else "another input")
    return "; ".join(lines)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts, and lists of them, as one of dotted keys; `config.` is left out of them."""
    if isinstance(value, list) and value and all(isinstance(x, dict) for x in value):
        value = {str(i): x for i, x in enumerate(value)}
    if not isinstance(value, dict) or not value:
        return {prefix.removeprefix("config."): value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{prefix}.{key}" if prefix else key)
    return found


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    keys = sorted({*old, *new})
    return [f"{k} {old.get(k)!r} -> {new.get(k)!r}" for k in keys if old.get(k) != new.get(k)]
