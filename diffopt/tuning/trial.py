"""One value of a cache's knob tried: pictures drawn, judged beside the reference, thrown away."""

from dataclasses import replace
from pathlib import Path
from shutil import rmtree

from diffopt.artifact import Artifact, MagRatios, ReferenceImages
from diffopt.data import pictures
from diffopt.errors import GateError
from diffopt.files.images import ImagesFile
from diffopt.files.metrics import MetricResult
from diffopt.files.search import TriedValue
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

    def __call__(self, value: float, order: int) -> TriedValue:
        """`order` is the how-manieth it is, from 1. Raises MetricError where a metric cannot be measured."""
        if self._opened is None:  # not at all where every value was tried before
            eval, pipeline = self.drawing.eval, self.drawing.pipeline
            under = RUNTIMES[eval.runtime].opened(self.ctx, pipeline, self.subject, texts=False, **eval.options)
            self._opened = under, Judge(self.ctx, floors(self.cache.search.floor), eval, self.reference)
        out = self.ctx.out / "drawn"
        out.mkdir()
        try:
            return self._tried(value, order, out, *self._opened)
        finally:
            rmtree(out)

    def _tried(self, value: float, order: int, out: Path, under: Under, judge: Judge) -> TriedValue:
        knob, drawing = self.cache.settings.knob, self.drawing
        settings = self.cache.settings.turned(value)
        cached = self.cache.model_copy(update={"settings": settings}).applied(self.ratios, None)
        metrics: dict[str, MetricResult] = {}
        broken = None
        ctx = replace(self.ctx, out=out, title=f"{self.ctx.title} {knob.name}={value:g}")
        with under(cached) as run:
            try:
                drawn = draw_all(ctx, run, drawing, drawing.eval.steps)
                pictures.write_index(out, drawing.prompts, drawing.seeds, ImagesFile(), drawn)
                metrics = judge.metrics(out)
            except GateError as e:  # a value that breaks pictures is one that does not keep the floor
                broken = str(e).splitlines()[0]
            counted = run.saved()
        assert counted is not None
        saved, verdict = counted.summary(), judge.verdict(metrics)
        return TriedValue(
            value=int(value) if knob.whole else value,
            metrics=metrics,
            broken=broken,
            hits=saved.hits,
            misses=saved.misses,
            computed=saved.computed,
            margins=verdict.margins,
            keeps=verdict.keeps,
            shown=verdict.shown,
            order=order,
        )


def point(tried: TriedValue) -> Point:
    return Point(float(tried.value), tried.computed, tried.hits, tried.keeps, tried.metrics, tried.margins)
