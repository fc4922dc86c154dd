"""What the rule tells of the memory of a job's steps, by fingerprint."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from diffopt import models
from diffopt.artifact import Pipeline
from diffopt.files.layers import Layer, read_layers
from diffopt.files.pipeline import PipelineFile
from diffopt.jobs.body import body
from diffopt.jobs.memory import Need, Rules
from diffopt.jobs.plan import Plan, Step
from diffopt.pipeline.outline import ODD, outline
from diffopt.quantization.layers import without
from diffopt.store.source import Source
from diffopt.store.store import Store
from diffopt.view import Choices

Local = Callable[[Source], Path | None]
"""Where a source's files are already; asks no network."""


def needs(plan: Plan, todo: Collection[Step], choices: Choices, store: Store, local: Local, *, starts: bool) -> dict[str, Need]:
    """Of the steps to run. `starts` is whether a run does, which may load torch."""
    model = choices.model
    found = body(model, local, starts=starts) if model and todo else None
    rules = Rules(choices, found, _layers(plan, choices, store, local) if found else ())
    return {step.fingerprint: _need(rules, step) for step in plan.steps if step in todo}


def _need(rules: Rules, step: Step) -> Need:
    try:
        return rules.need(step)
    except ODD:
        return Need(None, None)


def _layers(plan: Plan, choices: Choices, store: Store, local: Local) -> Sequence[Layer]:
    """Those that formats quantize, of the pinned model or by its files' headers; none where neither is here."""
    model = choices.model
    assert model is not None
    loads = [s for s in plan.steps if s.kind == Pipeline.kind and not s.pending]
    entry = next((e for s in loads if (e := store.entry(s.kind, s.fingerprint))), None)
    if entry and (entry.path / PipelineFile.NAME).is_file():
        pinned = PipelineFile.read(entry.path)
        return without(read_layers(entry.path), models.of(pinned).kept(pinned.blocks, pinned.backbones))
    directory = local(model.origin)
    about = outline(directory, model) if directory else None
    if about is None:
        return ()
    return without(about.layers, models.of(about.pinned).kept(about.pinned.blocks, about.pinned.backbones))
