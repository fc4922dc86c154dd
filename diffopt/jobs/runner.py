"""Runs a plan: what is in the store is taken, the rest is made, and the run's directory says which."""

import gc
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from diffopt import __version__
from diffopt.artifact import Artifact, Pipeline
from diffopt.errors import lacks_gpu_memory, memory, pass_on
from diffopt.files.run import RunFile, RunStep, State
from diffopt.jobs import preflight
from diffopt.jobs.cost import Estimate
from diffopt.jobs.plan import Plan, Step
from diffopt.jobs.warnings import lowered
from diffopt.machine import progress
from diffopt.machine.environment import gpus, machine, package
from diffopt.machine.memory import peaks, release
from diffopt.machine.output import to_log
from diffopt.stage import Context, Held
from diffopt.store import arrival
from diffopt.store.files import publish
from diffopt.store.source import Sources
from diffopt.store.store import Store
from diffopt.training.machines import number
from diffopt.view import Choices

log = logging.getLogger("diffopt")
MEASURED = frozenset({"time", "bench", "parity", "train"})
"""Stages whose result is how long they take, that have all in memory to compare it, or have processes of their own."""
PACKAGES = ("torch", "diffusers", "transformers", "nvidia-modelopt", "onnx", "onnxruntime-gpu", "hydra-core", "numpy")


@dataclass(frozen=True)
class Done:
    """What became of one step."""

    step: Step
    state: State
    seconds: float


def missing(plan: Plan, store: Store) -> set[Step]:
    """The steps that must run: those that are not in the store, and backwards what they lack.

    A dropped step whose artifact is only passing runs when something that must run needs it.
    """
    found: set[Step] = set()

    def visit(step: Step) -> None:
        if step in found or (not step.pending and store.has(step.kind, step.fingerprint)):
            return
        found.add(step)
        for parent in step.parents():
            visit(parent)

    for step in plan.steps:
        if step in plan.wanted or not step.stage.makes.passing:
            visit(step)
    return found


_held = Held()
"""Over the jobs of a sweep too: those that only quantize otherwise share a model."""


def let_go() -> None:
    """Free the model that the last step has opened, in a process that does more than run recipes."""
    _held.drop()
    release()


def run_plan(
    plan: Plan, choices: Choices, store: Store, sources: Sources, estimates: Mapping[str, Estimate] | None = None
) -> list[Done]:
    """Make what is missing, in order. A killed or failed run keeps every step that was finished.

    A training on several machines is of all their runs: the first machine's makes it and goes on, the others' have a part in
    it and end there, after what it needs. `estimates` are kept beside what is measured, by the steps' names.

    Raises PlanError for what the model cannot do, once its configs are known and before anything computes.
    """
    helps = number(choices.train) > 0
    todo = missing(plan, store)
    _bring(plan, todo, store)
    done = []
    checked: set[str] = set()
    along: set[Step] = set()
    ready = False
    width = max(len(s.name) for s in plan.steps)
    for step in plan.steps:
        started = time.monotonic()
        if helps and getattr(step.views.get("train"), "machines", 1) > 1:
            if not store.entry(step.kind, step.fingerprint):
                _help(step, store, sources)
            done.append(Done(step, "helped", time.monotonic() - started))
            log.info("%-*s  %s  helped; the first machine goes on", width, step.name, step.fingerprint)
            break
        state: State = "made" if step in todo else "cached" if store.entry(step.kind, step.fingerprint) else "spare"
        if step in along:
            todo.discard(step)
        if step in todo:
            with store.lock(step.fingerprint):
                if store.entry(step.kind, step.fingerprint):  # another job made it while this one waited
                    state = "cached"
                else:
                    if not ready and step.kind != Pipeline.kind:
                        _preflight(plan, choices, store, sources)
                        ready = True
                    _check_inputs(step, store, checked)
                    if _held.hand_to(step.stage.name):
                        release()  # before the next stage opens its own copy of the model
                    made = _made(step, step.companions(todo), store, sources, (estimates or {}).get(step.name))
                    checked.update(s.fingerprint for s in made)
                    along.update(made)
        seconds = time.monotonic() - started
        log.info("%-*s  %s  %s", width, step.name, step.fingerprint, f"made in {seconds:.1f} s" if state == "made" else state)
        done.append(Done(step, state, seconds))
    return done


def _bring(plan: Plan, todo: set[Step], store: Store) -> None:
    """Download what an object storage has of the plan: what would be in the store after a run here, and what is read."""
    read = {parent for step in todo for parent in step.parents()}
    for step in plan.steps if store.remotes else ():
        if step not in todo and (step in read or step in plan.wanted or not step.stage.makes.passing):
            arrival.bring(store, step.kind, step.fingerprint)


def _made(step: Step, beside: list[Step], store: Store, sources: Sources, estimate: Estimate | None) -> list[Step]:
    """Make it; where the GPU's memory is full once more, with less there at once. Raises GateError where that lacks too."""
    for lean in (False, True):
        try:
            return _make(step, beside, store, sources, estimate, lean)
        except BaseException as e:
            _held.drop()  # who knows in which state
            if lean or step.stage.name in MEASURED or not lacks_gpu_memory(e):
                _raise_known(step, e, estimate)
                raise
            log.info("%s: the GPU's memory is full; once more, with less of the model there at once", step.name)
        release()  # when the error, which has the stage's frames, is gone
    raise AssertionError


def _raise_known(step: Step, error: BaseException, estimate: Estimate | None) -> None:
    """Raises GateError where memory lacked, whatever library said so."""
    try:
        pass_on(error)
    except MemoryError as e:
        raise memory(step.name, e, lowered(step.name), estimate.peak if estimate else {}) from None


def _preflight(plan: Plan, choices: Choices, store: Store, sources: Sources) -> None:
    for step in plan.steps:
        if step.kind == Pipeline.kind and (entry := store.entry(step.kind, step.fingerprint)):
            with to_log(), progress.step("check"):
                nowhere = Context(store.root / "tmp", sources.pinned, sources.locate)
                preflight.check(nowhere, choices, Pipeline(entry.path, entry.fingerprint))


def _check_inputs(step: Step, store: Store, checked: set[str]) -> None:
    """Hash what is about to be read and was only checked by size: once a run, and not what the run itself has made."""
    for parent in step.parents():
        if parent.fingerprint not in checked and (entry := store.entry(parent.kind, parent.fingerprint)):
            entry.check_content()
            checked.add(parent.fingerprint)


def _make(step: Step, beside: list[Step], store: Store, sources: Sources, estimate: Estimate | None, lean: bool) -> list[Step]:
    """Make the artifact of a step, and in the same pass those of `beside`, unless another process has or makes them."""
    provenance: dict[str, Any] = {"diffopt": __version__, "packages": {p: package(p) for p in PACKAGES}, "machine": machine()}
    if estimate and (foretold := estimate.provenance()):
        provenance["estimated"] = foretold
    made = [step]
    started = time.monotonic()
    with ExitStack() as stack:
        along = {}
        for one in beside:
            stack.enter_context(store.lock(one.fingerprint))
            if not store.entry(one.kind, one.fingerprint):
                along[one.stage.name] = stack.enter_context(store.publish(one.kind, one.fingerprint, one.identity, provenance))
                made.append(one)
        out = stack.enter_context(store.publish(step.kind, step.fingerprint, step.identity, provenance))
        provenance["peak_bytes"] = _run(step, store, sources, out, along, lean)
        provenance["seconds"] = round(time.monotonic() - started, 3)
    for one in made:
        store.remove(store.kept(one.fingerprint))
    return made


def _help(step: Step, store: Store, sources: Sources) -> None:
    """Have a part in what another machine makes, which has the lock and publishes it."""
    if _held.hand_to(step.stage.name):
        release()
    with tempfile.TemporaryDirectory(prefix=f"{step.fingerprint}-") as nothing:
        _run(step, store, sources, Path(nothing))


def _run(
    step: Step, store: Store, sources: Sources, out: Path, along: Mapping[str, Path] | None = None, lean: bool = False
) -> dict[str, int]:
    """Let the stage write to `out`, and those of its companions to `along`; the most memory that it took."""
    arguments: dict[str, Any] = dict(step.views)
    for param in step.stage.params:
        if param.role == "seed":
            arguments["seed"] = step.identity["seed"]
    for name, value in step.inputs.items():
        arguments[name] = (
            tuple(_artifact(s, store) for s in value) if isinstance(value, list) else _artifact(value, store) if value else None
        )
    device = "cuda" if gpus() else "cpu"
    kept = store.kept(step.fingerprint)
    context = Context(
        out, sources.pinned, sources.locate, device, step.name, _held, kept, store.compiled, store.timings, along or {}, lean
    )
    with to_log(), progress.step(step.name), peaks() as peak:
        if "modelopt" in step.stage.probes:
            _libraries()
        step.stage.run(context, **arguments)
    return peak


@cache
def _libraries() -> None:
    """Import modelopt while no stage holds a model, and leave what libraries have made to no later search for garbage.

    A search for garbage between two jobs takes 0.35 s with all that the libraries have made, and next to nothing without. The
    searches that are due while the import makes them take 4 s of its 21, and find nothing.
    """
    gc.disable()
    try:
        import_module("modelopt.torch.quantization")
    finally:
        gc.enable()
    gc.collect()
    gc.freeze()


def _artifact(step: Step, store: Store) -> Artifact:
    entry = store.entry(step.kind, step.fingerprint)
    assert entry is not None  # made earlier in this loop, or cached
    return step.stage.makes(entry.path, entry.fingerprint)


def write_run(
    directory: Path, name: str, overrides: list[str], config: str, plan: Plan, done: list[Done], store: Store
) -> None:
    """Link the artifacts into the run's directory by step name, and write `run.json`, the report's source."""
    rows = []
    for d in done:
        if d.state != "spare":
            link = directory / d.step.name
            entry = store.entry(d.step.kind, d.step.fingerprint)
            target = entry.path if entry else store.root / d.step.kind / d.step.fingerprint
            if link.is_symlink():
                link.unlink()
            link.symlink_to(os.path.relpath(target, directory.resolve()))
        inputs = [p.name for p in d.step.parents()]
        rows.append(RunStep(d.step.name, d.step.kind, d.step.fingerprint, d.state, round(d.seconds, 3), inputs))
    content = RunFile(name, overrides, config, plan.notes, [s.name for s in plan.wanted], tuple(rows))
    publish(directory / RunFile.NAME, content.to_json())
    if not store.trouble():
        store.refer(directory, [(d.step.kind, d.step.fingerprint) for d in done if d.state != "spare"])
