"""search: the value of a cache's knob that leaves out most and keeps a floor under quality."""

import json
import logging
from pathlib import Path
from typing import Annotated, Any, Self

from diffopt.artifact import (
    CacheSearch,
    CandidateEmbeddings,
    Checkpoint,
    EnginePlan,
    EvalEmbeddings,
    MagRatios,
    OnnxGraph,
    Pipeline,
    ReferenceImages,
)
from diffopt.files.json_file import loaded, plain, typed
from diffopt.files.search import CacheSearchFile, TriedValue
from diffopt.groups import CallView
from diffopt.groups.cache import SearchView, measures, searches
from diffopt.groups.eval import Eval, RuntimeView
from diffopt.groups.format import slims
from diffopt.metrics import METRICS, SOURCES
from diffopt.stage import Context, Under, stage
from diffopt.store.files import content
from diffopt.store.source import ScorerSource
from diffopt.view import Choices, Group

log = logging.getLogger("diffopt")

POINTS = "points.json"


class JudgedView(RuntimeView, of=Eval):
    """The pictures that are drawn for each value, and what the metrics of the floor need."""

    clip: ScorerSource | None
    imagereward: ScorerSource | None
    features: ScorerSource | None

    @classmethod
    def fields_read(cls) -> frozenset[str]:
        return super().fields_read() | {*SOURCES}

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        needed = {source for name in _search(choices).floor for source in METRICS[name].needs}
        return super().used(choices) - (set(SOURCES) - needed)

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Eval)
        (whole,) = super().split(group, choices)
        many = min(_search(choices).prompts or group.size, group.size)
        return [whole.model_copy(update={"prompts": group.prompts.part(0, many)})]


def _search(choices: Choices) -> Any:
    return choices.cache.search  # type: ignore[union-attr]


@stage(version=1, when="cache", probes=("numerics", "scorers"), only=searches)
def search(
    ctx: Context,
    model: CallView,
    cache: SearchView,
    eval: JudgedView,
    pipeline: Pipeline,
    texts: EvalEmbeddings,
    reference: ReferenceImages,
    subject: Checkpoint | OnnxGraph | EnginePlan | None,
    ratios: Annotated[MagRatios | None, Under(measures)],
    seed: int,
    own: Annotated[CandidateEmbeddings | None, Under(slims, silent=True)] = None,
) -> CacheSearch:
    from diffopt.errors import GateError
    from diffopt.runtimes.candidate import Drawing
    from diffopt.tuning import bisection, explanation
    from diffopt.tuning.trial import Trial, point

    asked, knob = cache.search, cache.settings.knob
    assert asked.low is not None
    assert asked.high is not None
    scale = bisection.Scale(knob, asked.low, asked.high, asked.tolerance)
    kept = _kept(ctx.kept)
    trial = Trial(ctx, cache, Drawing(model, eval, pipeline, own or texts, seed), subject, ratios, reference)

    def evaluate(value: float) -> bisection.Point:
        key = repr(value)
        if key not in kept:
            kept[key] = trial(value, len(kept) + 1)
            _keep(ctx.kept, kept)
        return point(kept[key])

    found = bisection.search(scale, evaluate, asked.points, asked.evaluations)
    if found.chosen is None:
        raise GateError(explanation.nothing(scale, asked, found.points))
    CacheSearchFile(
        method=cache.method,
        knob=knob.name,
        more=knob.more,
        low=asked.low,
        high=asked.high,
        floor=asked.floor,
        prompts=len(eval.prompts),
        steps=eval.steps,
        points=tuple(kept[repr(p.value)] for p in found.points),
        cliffs=tuple(bisection.cliffs(scale, asked, found.points)),
        chosen=kept[repr(found.chosen.value)],
        limit=found.limit,
        reason=explanation.reason(scale, found),
    ).write(ctx.out)


def _kept(directory: Path | None) -> dict[str, TriedValue]:
    """The points of a search that was killed, by value."""
    if directory is None or not (directory / POINTS).is_file():
        return {}
    try:
        return typed(dict[str, TriedValue], loaded(content(directory / POINTS)))
    except (OSError, ValueError) as e:
        log.info("search: the points of the run before are not taken: %s is not one of ours (%s)", POINTS, e)
        return {}


def _keep(directory: Path | None, points: dict[str, TriedValue]) -> None:
    """Written under another name and renamed, so that a file that is there is whole."""
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / f"{POINTS}.partial"
        partial.write_text(json.dumps(plain(points)))
        partial.rename(directory / POINTS)
