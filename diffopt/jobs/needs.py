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
from diffopt.view import Choices

Local = Callable[[Source], Path | None]
"""Where a source's files are already; asks no network."""


def needs(
    plan: Plan, todo: Collection[Step], choices: Choices, pinned: Pipeline | None, local: Local, *, starts: bool
) -> dict[str, Need]:
    """Of the steps to run. `starts` is whether a run does, which may load torch."""
    model = choices.model
    found = body(model, local, starts=starts) if model and todo else None
    rules = Rules(choices, found, _layers(choices, pinned, local) if found else ())
    return {step.fingerprint: _need(rules, step) for step in plan.steps if step in todo}


def _need(rules: Rules, step: Step) -> Need:
    try:
        return rules.need(step)
    except ODD:
        return Need(None, None)


def _layers(choices: Choices, entry: Pipeline | None, local: Local) -> Sequence[Layer]:
    """Those that formats quantize, of the pinned model or by its files' headers; none where neither is here."""
    model = choices.model
    assert model is not None
    if entry:
        pinned = PipelineFile.read(entry.path)
        return without(read_layers(entry.path), models.of(pinned).kept(pinned.blocks, pinned.backbones))
    directory = local(model.origin)
    about = outline(directory, model) if directory else None
    if about is None:
        return ()
    return without(about.layers, models.of(about.pinned).kept(about.pinned.blocks, about.pinned.backbones))
