"""Which of the installed stages a plan can come to. Pure: only what the stages declare is looked at."""

from collections.abc import Iterator

from diffopt.artifact import Artifact
from diffopt.jobs.plan import ENDS
from diffopt.stage import Stage


def unreached(stages: list[Stage]) -> dict[str, str]:
    """By the name of a stage why it never runs: `what is wrong; what to do`. `stages` are in the order of their places."""
    reached = _reached(stages)
    found = {s.name: _why(s, stages) for s in stages if s not in reached}
    for stage in reached:
        for param in stage.params:
            kinds = [t for t in param.types if issubclass(t, Artifact)]
            needed = kinds and not param.optional and not param.under and not param.many
            if needed and not any([*_makers(kind, stage, stages)] for kind in kinds):
                takes = " or ".join(f"a {kind.kind}" for kind in kinds)
                found[stage.name] = f"takes {takes}, which no stage before it makes; install one, or give it a later place"
    return found


def _reached(stages: list[Stage]) -> list[Stage]:
    """From what plans end in, backwards. A stage that is hidden by a later one is none of them."""
    found: list[Stage] = []
    waiting = [s for s in stages if s.asked is not None] + [s for kind in ENDS for s in _taken(kind, None, stages)]
    while waiting:
        stage = waiting.pop()
        if stage in found:
            continue
        found.append(stage)
        kinds = [t for p in stage.params for t in p.types if issubclass(t, Artifact)]
        waiting += [s for kind in kinds for s in _taken(kind, stage, stages)]
    return found


def _makers(kind: type[Artifact], taker: Stage | None, stages: list[Stage]) -> Iterator[Stage]:
    """Of what `taker` gets: one that makes the kind itself gets what an earlier stage makes. The last one first."""
    before = taker is not None and issubclass(taker.makes, kind)
    for stage in reversed(stages[: stages.index(taker)] if before and taker else stages):
        if issubclass(stage.makes, kind):
            yield stage


def _taken(kind: type[Artifact], taker: Stage | None, stages: list[Stage]) -> Iterator[Stage]:
    """Those makers that are the last one under some choices."""
    later: list[Stage] = []
    for stage in _makers(kind, taker, stages):
        if not any(_hides(other, stage) for other in later):
            yield stage
        later.append(stage)


def _hides(later: Stage, stage: Stage) -> bool:
    """Whether the later one is there whenever the other is."""
    return later.only is None and later.when in (None, stage.when)


def _why(stage: Stage, stages: list[Stage]) -> str:
    kind = stage.makes.kind
    others = [s for s in stages if issubclass(s.makes, stage.makes) and s is not stage and _hides(s, stage)]
    if others and stages.index(others[-1]) > stages.index(stage):
        return f"makes a {kind}, and so does {others[-1].name} after it, which is taken; let {others[-1].name} take its {kind}"
    return f"makes a {kind}, which no stage takes and nothing asks for; give it `asked`, or a stage that takes it"
