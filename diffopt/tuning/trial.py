"""One value of a cache's knob tried: pictures drawn, judged beside the reference, thrown away."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

from diffopt.artifact import Artifact, MagRatios, ReferenceImages
from diffopt.data import pictures
from diffopt.errors import GateError
from diffopt.groups.cache import SearchView
from diffopt.quality.floor import floors
from diffopt.runtimes import RUNTIMES, Under
from diffopt.runtimes.candidate import Drawing, draw_all
from diffopt.stage import Context
from diffopt.tuning.bisection import Point
from diffopt.tuning.judge import Judge


class Trial:
    """The model and the scorers are opened once, for all values."""

    def __init__(
        self,
        ctx: Context,
        cache: SearchView,
        drawing: Drawing,
        subject: Artifact | None,
        ratios: MagRatios | None,
        reference: ReferenceImages,
    ):
        """`drawing.eval` has the sources of the scorers too; `subject` is what the runtime runs, if not the plain model."""
        self.ctx, self.cache, self.drawing = ctx, cache, drawing
        self.subject, self.ratios, self.reference = subject, ratios, reference
        self._opened: tuple[Under, Judge] | None = None

    def __call__(self, value: float) -> dict[str, Any]:
        """An entry of search.json's `points`, but for its `order`. Raises MetricError where a metric cannot be measured."""
        if self._opened is None:  # not at all where every value was tried before
            eval, pipeline = self.drawing.eval, self.drawing.pipeline
            under = RUNTIMES[eval.runtime].opened(self.ctx, pipeline, self.subject, texts=False)
            self._opened = under, Judge(self.ctx, floors(self.cache.search.floor), eval, self.reference)
        out = self.ctx.out / "drawn"
        out.mkdir()
        try:
            return self._tried(value, out, *self._opened)
        finally:
            rmtree(out)

    def _tried(self, value: float, out: Path, under: Under, judge: Judge) -> dict[str, Any]:
        knob, drawing = self.cache.settings.knob, self.drawing
        settings = self.cache.settings.turned(value)
        cached = self.cache.model_copy(update={"settings": settings}).applied(self.ratios, None)
        found: dict[str, Any] = {"value": int(value) if knob.whole else value, "metrics": {}, "broken": None}
        ctx = replace(self.ctx, out=out, title=f"{self.ctx.title} {knob.name}={value:g}")
        with under(cached) as run:
            try:
                drawn = draw_all(ctx, run, drawing, drawing.eval.steps)
                pictures.write_index(out, drawing.prompts, drawing.seeds, {}, drawn)
                found["metrics"] = judge.metrics(out)
            except GateError as e:  # a value that breaks pictures is one that does not keep the floor
                found["broken"] = str(e).splitlines()[0]
            saved = run.saved()
        assert saved is not None
        return found | saved.summary() | judge.verdict(found["metrics"])


def point(entry: Mapping[str, Any]) -> Point:
    """Of an entry of search.json's `points`."""
    names = ("computed", "hits", "keeps", "metrics", "margins")
    return Point(value=float(entry["value"]), **{name: entry[name] for name in names})
