"""From choices to steps: backwards from what is wanted, like make. Pure: nothing is run, nothing is written."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from diffopt.artifact import (
    Artifact,
    Bench,
    Checkpoint,
    Comparison,
    DeployedCheckpoint,
    EnginePlan,
    Images,
    Latency,
    Metrics,
    NativeCheckpoint,
    OnnxGraph,
    Parity,
    Sensitivity,
)
from diffopt.caches import Settings
from diffopt.errors import PlanError
from diffopt.groups import GROUPS, alternatives
from diffopt.groups.cut import cuts
from diffopt.groups.format import slims
from diffopt.machine.environment import Environment
from diffopt.runtimes import RUNTIMES
from diffopt.stage import Param, Stage
from diffopt.store.fingerprint import fingerprint
from diffopt.store.source import Source
from diffopt.view import Choices, Group, View

ENDS: tuple[type[Artifact], ...] = (
    Sensitivity,
    OnnxGraph,
    EnginePlan,
    NativeCheckpoint,
    DeployedCheckpoint,
    Metrics,
    Comparison,
    Latency,
    Bench,
    Parity,
    Images,
    Checkpoint,
)
"""Kinds that options of ours ask for. What else is made is asked for by its own stage, or taken by another."""


@dataclass(frozen=True, eq=False)
class Step:
    """One stage with its views and inputs bound: it makes one artifact."""

    name: str
    """The stage's name, with `.baseline` for the full-precision side, a number for one of several chunks, and `@NAME` for
    a further candidate of `eval.compare`."""
    stage: Stage
    views: dict[str, View | None]
    used: frozenset[str]
    """`group.field` of everything that it reads and that has an effect."""
    inputs: "dict[str, Step | list[Step] | None]" = field(repr=False)
    identity: dict[str, Any] = field(repr=False)
    pending: bool = False
    """A source that it depends on is unresolved, so its identity is not final."""

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @property
    def kind(self) -> str:
        return self.stage.makes.kind

    def parents(self) -> list["Step"]:
        found: list[Step] = []
        for value in self.inputs.values():
            found += value if isinstance(value, list) else [value] if value else []
        return found

    def companions(self, todo: Iterable["Step"]) -> list["Step"]:
        """Those of `todo` that read the same, and whose artifacts this step can make in its own pass."""
        same = (s for s in todo if s.stage.name in self.stage.along)
        return [s for s in same if s.views == self.views and s.inputs == self.inputs]


@dataclass(frozen=True)
class Plan:
    steps: list[Step]
    """In an order in which they can run."""
    wanted: list[Step]
    notes: list[str]
    """What is not made, and why."""

    @property
    def used(self) -> frozenset[str]:
        return frozenset().union(*(s.used for s in self.steps))


def make_plan(
    choices: Choices,
    stages: list[Stage],
    environment: Environment,
    digest: Callable[[Source], str | None],
) -> Plan:
    """Plan what the choices want. Raises PlanError for what cannot be made, all reasons at once.

    `digest` resolves a source, or returns None where it was never resolved: the steps that depend on it are pending.
    """
    wanted, notes = wants(choices)
    asked = [s for s in stages if s.wanted(choices)]
    if not wanted and not asked:
        raise PlanError(
            "recipe: nothing to make (no format, sense, export or eval chosen); `diffopt ls recipe` lists the recipes"
        )
    planner = _Planner(stages, environment, digest)
    targets = [planner.make(kind, choices, [kind.kind])[0] for kind in wanted]
    targets += [step for s in asked for step in planner.steps_of(s, choices, [s.name])]
    plan = Plan(list(planner.steps.values()), [*dict.fromkeys(targets)], notes)
    if idle := _idle_groups(choices, plan):
        raise PlanError("\n".join(idle))
    return plan


def wants(choices: Choices) -> tuple[list[type[Artifact]], list[str]]:
    """The kinds that the choices ask for, all of ENDS, and notes on what they cannot have."""
    found: list[type[Artifact]] = []
    notes: list[str] = []
    if choices.sense:
        found.append(Sensitivity)
    if choices.export:
        found.append(choices.export.makes)
    if choices.eval:
        found += [Metrics] if choices.eval.metrics else []
        found += [Comparison] if choices.eval.compare else []
        notes += [f"compared with {name}: {alternatives.ALTERNATIVES[name].about}" for name in choices.eval.compare]
        if choices.eval.compares_kernels and choices.format:
            found.append(Parity)
        runtime, name = RUNTIMES[choices.eval.runtime], choices.format.name if choices.format else None
        if choices.eval.latency and name in runtime.kernels:
            found.append(Latency)
        elif choices.eval.latency:
            notes.append(f"{name} is simulated by the {runtime.name} runtime: its pictures count, its speed does not")
        found += [Bench] if choices.eval.bench else []
        if not {Metrics, Latency, Bench} & {*found} and not _random(choices):
            found.append(Images)
    if isinstance(choices.cache, Settings) and choices.eval:
        notes += choices.cache.notes(choices.eval.size, choices.eval.steps)
    if choices.model and (came := choices.model.quantized):
        assert choices.model.base is not None
        what = f"is quantized already, {came.about}, and is not calibrated again"
        notes.append(f"{choices.model.source.name} {what}; its reference is {choices.model.base.name}")
    elif choices.model and (own := choices.model.own):
        notes.append(own)
    notes += choices.model.dequantized if choices.model else []
    if choices.model and choices.model.lora:
        fused = "its reference" if choices.model.quantized else "the model"
        notes.append(f"{fused} is fused with " + ", ".join(a.label for a in choices.model.lora))
    if choices.export and choices.export.kind == "graph" and choices.cache and not cuts(choices):
        method = choices.cache.model_dump()["method"]
        notes.append(f"{method} decides while it runs what it reuses, so the graph is not cut for it: it computes every step")
    if slims(choices) and choices.export and choices.export.kind in ("comfyui", "native"):
        notes.append(f"export={choices.export.kind} has no place for text encoders: theirs stay as they were")
    if _random(choices):
        notes.append("the weights are random: times, sizes and memory count, pictures and scales mean nothing")
    if not {*found} - {Sensitivity} and choices.format:
        found.append(Checkpoint)
    return found, notes


def _random(choices: Choices) -> bool:
    return choices.model is not None and choices.model.weights == "random"


def idle_overrides(plan: Plan, choices: Choices, overrides: list[str]) -> list[str]:
    """Lines for those explicit overrides (`calib.alpha=0.5`) that no step reads and nothing is planned by."""
    given = {key: value for key, _, value in (o.lstrip("+~").partition("=") for o in overrides)}
    given = {key: value for key, value in given.items() if value != "null" or not _left_open(choices, key)}
    return [f"{key}: {reason} (got {given[key]}); {advice}" for key, (reason, advice) in idle(plan, choices, given).items()]


def _left_open(choices: Choices, key: str) -> bool:
    """Whether null is what another field's value makes of this one: said or not, it is the same."""
    group, _, name = key.partition(".")
    chosen: Group | None = choices.of(group) if group in GROUPS else None
    return chosen is not None and name in chosen.unread()


def idle(plan: Plan, choices: Choices, keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Of these keys those that no step reads and nothing is planned by: why, and what to do."""
    found = {}
    for key in keys:
        group, _, within = key.partition(".")
        name = within.partition(".")[0]  # of a field with fields of its own, as format.budget.bits
        if name and group in GROUPS and f"{group}.{name}" not in plan.used and name not in GROUPS[group].steers:
            if (chosen := choices.of(group)) is None:
                found[key] = ("the group is not chosen", f"choose {group}=OPTION, or drop it")
            else:
                picked = f"format={choices.format.name}" if choices.format else "these choices"
                reader, reason = GROUPS[group].reader(name), chosen.unread().get(name)
                why = reason or (f"{reader} alone reads it" if reader else "")
                found[key] = (f"has no effect under {picked}" + (f", since {why}" if why else ""), "drop it")
        if key == "seed" and not any(p.role == "seed" for s in plan.steps for p in s.stage.params):
            found[key] = ("has no effect on these steps", "drop it")
    return found


def _idle_groups(choices: Choices, plan: Plan) -> list[str]:
    read = {key.split(".")[0] for key in plan.used}
    return [
        f"{name}: nothing in this plan reads it (got {name}=...); drop it, or choose what uses it"
        for name in GROUPS
        if choices.of(name) is not None and name not in read
    ]


def _aligned(inputs: dict[str, Any], stage: Stage, i: int, many: int) -> dict[str, Any]:
    """The inputs of the i-th of `many` steps of a stage: of what was split in the same way, the i-th part."""
    whole = {p.name for p in stage.params if p.many}
    found = {}
    for name, value in inputs.items():
        split = isinstance(value, list) and name not in whole
        if split and len(value) != many:
            raise PlanError(
                f"{stage.name}: takes one {value[0].kind} at a time (got {len(value)} for {many} steps); mend the stage"
            )
        found[name] = value[i] if split else value
    return found


class _Planner:
    def __init__(self, stages: list[Stage], environment: Environment, digest: Callable[[Source], str | None]):
        self.stages = stages
        self.environment = environment
        self.digest = digest
        self.steps: dict[str, Step] = {}

    def make(
        self,
        kind: type[Artifact],
        choices: Choices,
        path: list[str],
        *,
        baseline: bool = False,
        before: Stage | None = None,
    ) -> list[Step]:
        """The steps that make `kind`: one, or one for each chunk. Raises PlanError where no chosen group calls for one.

        `before` is a stage that takes the kind it makes, as training does: only earlier stages can give it that.
        """
        makers = self._makers(kind, choices, before)
        called = [s for s in makers if s.called(choices)]
        if not called:
            if makers:
                groups = " or ".join(f"{s.when}=OPTION" for s in makers)
                raise PlanError(f"{path[-1]}: needs a {kind.kind} (got no {makers[-1].when}); choose {groups}")
            raise PlanError(f"{path[-1]}: needs a {kind.kind}, which no installed stage makes; install one")
        return self.steps_of(called[-1], choices, path, baseline)

    def steps_of(self, stage: Stage, choices: Choices, path: list[str], baseline: bool = False) -> list[Step]:
        """Those of one stage, with all that they need."""
        alternatives: list[dict[str, View | None]] = [{}]
        used: set[str] = set()
        for param in (p for p in stage.params if p.role == "view"):
            read = param.under is None or param.under.test(choices)
            group: Group | None = choices.of(param.name) if read else None
            view = param.types[0]
            assert issubclass(view, View)
            if group is None and not param.optional:
                raise PlanError(f"{stage.name}: needs the group {param.name} (got none); choose {param.name}=OPTION")
            drawn: list[View | None] = [None] if group is None else [*view.split(group, choices)]
            if group is not None:
                used |= {f"{param.name}.{name}" for name in view.used(choices)}
            alternatives = [{**views, param.name: v} for views in alternatives for v in drawn]
        inputs = {p.name: self._input(p, stage, choices, path) for p in stage.params if p.role == "artifact"}
        found = []
        for i, views in enumerate(alternatives):
            name = stage.name + (f".{i}" if len(alternatives) > 1 else "") + (".baseline" if baseline else "")
            name += f"@{choices.compared}" if choices.compared else ""
            found.append(
                self._step(name, stage, choices, views, frozenset(used), _aligned(inputs, stage, i, len(alternatives)))
            )
        return found

    def _input(self, param: Param, stage: Stage, choices: Choices, path: list[str]) -> Any:
        if param.under and not param.under.test(choices):
            return [] if param.many else None
        kinds = [t for t in param.types if issubclass(t, Artifact)]
        if len(kinds) > 1:
            assert choices.eval is not None
            kind = RUNTIMES[choices.eval.runtime].runs
            if kind not in kinds:
                raise PlanError(f"{stage.name}: cannot run a {kind.kind}; choose another eval.runtime")
            kinds = [kind]
        if param.whose == "compared":
            names = choices.eval.compare if choices.eval else []
            each = [self.make(kinds[0], alternatives.choices(name, choices), [*path, stage.name]) for name in names]
            return [step for steps in each for step in steps]
        baseline = param.whose == "baseline"
        choices = choices.baseline() if baseline else choices
        if param.whose == "main":
            choices = choices.main or choices
        # A runtime that runs full precision as it is needs no artifact; one that runs a graph always does.
        spare = len(param.types) == 1 or kinds[0] is Checkpoint
        before = stage if issubclass(stage.makes, kinds[0]) else None
        called = [s for s in self._makers(kinds[0], choices, before) if s.called(choices)]
        if param.optional and spare and not called and not param.under:
            return None
        found = self.make(kinds[0], choices, [*path, stage.name], baseline=baseline, before=before)
        return found if param.many or len(found) > 1 else found[0]

    def _makers(self, kind: type[Artifact], choices: Choices, before: Stage | None) -> list[Stage]:
        stages = self.stages[: self.stages.index(before)] if before else self.stages
        return [s for s in stages if issubclass(s.makes, kind) and s.there(choices)]

    def _step(
        self,
        name: str,
        stage: Stage,
        choices: Choices,
        views: dict[str, View | None],
        used: frozenset[str],
        inputs: dict[str, Any],
    ) -> Step:
        config: dict[str, Any] = {}
        pending = False
        silent = {p.name for p in stage.params if p.under and p.under.silent}
        for group, view in views.items():
            if view is None:
                config |= {} if group in silent else {group: None}
                continue
            config[group] = view.identity(frozenset(k.partition(".")[2] for k in used if k.startswith(f"{group}.")))
            for key, value in view:
                if key in config[group]:
                    config[group][key], unresolved = self._pinned(value, config[group][key])
                    pending |= unresolved
        parents: dict[str, Any] = {}
        for param, value in inputs.items():
            if not value and param in silent:
                continue
            for parent in value if isinstance(value, list) else [value] if value else []:
                pending |= parent.pending
            parents[param] = [p.fingerprint for p in value] if isinstance(value, list) else value and value.fingerprint
        probes = stage.probes
        if any(len(p.types) > 1 for p in stage.params) and choices.eval:
            runtime = RUNTIMES[choices.eval.runtime]
            probes += runtime.probes + (runtime.simulating if choices.format else ())
        identity = {
            "stage": stage.name,
            "version": stage.version,
            "config": config,
            **({"seed": choices.seed} if any(p.role == "seed" for p in stage.params) else {}),
            "inputs": parents,
            "environment": self.environment.of(probes),
        }
        step = Step(name, stage, views, used, inputs, identity, pending)
        return self.steps.setdefault(step.fingerprint, step)

    def _pinned(self, value: Any, dumped: Any) -> tuple[Any, bool]:
        """`dumped` with a digest in the place of every source of `value`, and whether one of them is unresolved."""
        if isinstance(value, Source):
            digest = self.digest(value)
            return digest or f"unresolved:{value.name}", digest is None
        if isinstance(value, BaseModel) and isinstance(dumped, dict):
            found = {
                k: self._pinned(getattr(value, k), v) if k in type(value).model_fields else (v, False)
                for k, v in dumped.items()
            }
            return {k: v for k, (v, _) in found.items()}, any(unresolved for _, unresolved in found.values())
        if isinstance(value, list) and isinstance(dumped, list):
            parts = [self._pinned(*pair) for pair in zip(value, dumped, strict=True)]
            return [v for v, _ in parts], any(unresolved for _, unresolved in parts)
        return dumped, False
