"""One value of a cache's knob tried: pictures drawn, judged beside the reference, thrown away."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

from diffopt.artifact import Artifact, EvalEmbeddings, MagRatios, Pipeline, ReferenceImages
from diffopt.data import pictures
from diffopt.errors import GateError, MetricError
from diffopt.groups import CallView
from diffopt.groups.cache import SearchView
from diffopt.metrics import METRICS, Scorer, Weights
from diffopt.quality.floor import Floor, floors
from diffopt.quality.scoring import measure
from diffopt.quality.summary import entries
from diffopt.quality.verdict import FEW
from diffopt.runtimes import RUNTIMES
from diffopt.runtimes.candidate import draw_all, seeds_of
from diffopt.stage import Context
from diffopt.tuning.bisection import Point


class Trial:
    """The model is opened once, for all values."""

    def __init__(
        self,
        ctx: Context,
        model: CallView,
        cache: SearchView,
        eval: Any,
        pipeline: Pipeline,
        texts: EvalEmbeddings,
        reference: ReferenceImages,
        subject: Artifact | None,
        ratios: MagRatios | None,
        seed: int,
    ):
        """`eval` is the stage's view: a RuntimeView with the sources of the scorers."""
        self.ctx, self.model, self.cache, self.eval, self.seed = ctx, model, cache, eval, seed
        self.pipeline, self.texts, self.subject, self.ratios = pipeline, texts, subject, ratios
        self.prompts: tuple[str, ...] = eval.prompts.prompts
        self.floors: list[Floor] = floors(cache.search.floor)
        self.theirs = pictures.frames(reference.path)[: len(self.prompts)]
        self._under: Any = None
        self._scorers: dict[str, Scorer] = {}

    def __call__(self, value: float) -> dict[str, Any]:
        """An entry of search.json's `points`, but for its `order`. Raises MetricError where a metric cannot be measured."""
        if self._under is None:  # not at all where every value was tried before
            self._under = RUNTIMES[self.eval.runtime].opened(self.ctx, self.pipeline, self.subject, texts=False)
            self._scorers = self._opened()
        out = self.ctx.out / "drawn"
        out.mkdir()
        try:
            return self._tried(value, out)
        finally:
            rmtree(out)

    def _tried(self, value: float, out: Path) -> dict[str, Any]:
        knob = self.cache.settings.knob
        settings = self.cache.settings.turned(value)
        cached = self.cache.model_copy(update={"settings": settings}).applied(self.ratios, None)
        found: dict[str, Any] = {"value": int(value) if knob.whole else value, "metrics": {}, "broken": None}
        ctx = replace(self.ctx, out=out, title=f"{self.ctx.title} {knob.name}={value:g}")
        with self._under(cached) as run:
            try:
                drawn = draw_all(ctx, run, self.model, self.eval, self.pipeline, self.texts, self.seed, self.eval.steps)
                pictures.write_index(out, self.prompts, seeds_of(self.eval, self.seed), {}, drawn)
                found["metrics"] = self._judged(out)
            except GateError as e:  # a value that breaks pictures is one that does not keep the floor
                found["broken"] = str(e).splitlines()[0]
            found |= run.saved().summary()
        margins = {f.metric: f.margin(_Row(found["metrics"])) for f in self.floors} if found["metrics"] else {}
        keeps = bool(margins) and all(m["mean"] >= 0 for m in margins.values())
        shown = keeps and all(m["n"] >= FEW and m["low"] >= 0 for m in margins.values())
        return found | {"margins": margins, "keeps": keeps, "shown": shown}

    def _judged(self, out: Path) -> dict[str, Any]:
        drawn = {"reference": self.theirs, "candidate": pictures.frames(out)}
        measured = measure(self.prompts, drawn, self._scorers, "reference", device=self.ctx.device)
        if measured.failed:
            raise MetricError("\n".join(measured.failed.values()))
        if measured.flaws:
            raise GateError("\n".join(measured.flaws))
        return entries(measured, self._scorers)

    def _opened(self) -> dict[str, Scorer]:
        names = [f.metric for f in self.floors]
        needed = dict.fromkeys(source for name in names for source in METRICS[name].needs)
        weights = {s: self.ctx.locate(self.ctx.digest(getattr(self.eval, s))) for s in needed}
        loaded = Weights(weights, self.ctx.device)
        return {name: METRICS[name].open(loaded) for name in names}


@dataclass(frozen=True)
class _Row:
    metrics: dict[str, Any]


def point(entry: Mapping[str, Any]) -> Point:
    """Of an entry of search.json's `points`."""
    names = ("computed", "hits", "keeps", "metrics", "margins")
    return Point(value=float(entry["value"]), **{name: entry[name] for name in names})
