"""The pictures of a candidate: the evaluation's prompts and seeds by a runtime."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from diffopt.artifact import Checkpoint, EnginePlan, EvalTexts, OnnxGraph, Pipeline
from diffopt.data import pictures, sounds, videos
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.graph import OnnxGraphFile
from diffopt.files.images import ImagesFile, VideoFiles
from diffopt.files.ranges import RangesFile
from diffopt.groups import CallView
from diffopt.groups.eval import RuntimeView
from diffopt.pipeline.draw import batches, draw
from diffopt.pipeline.open import family_of, frame_rate
from diffopt.pipeline.pixels import given
from diffopt.pipeline.texts import first, load, regroup
from diffopt.runtimes import RUNTIMES, Running
from diffopt.stage import Context


@dataclass(frozen=True)
class Drawing:
    """What is drawn, whatever runs the backbone: a picture of each of the evaluation's prompts, from a seed of its own."""

    model: CallView
    eval: RuntimeView
    pipeline: Pipeline
    texts: EvalTexts
    """May be of more prompts, of which the evaluation's are the first."""
    seed: int
    """The first prompt's."""

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.eval.prompts.prompts

    @property
    def seeds(self) -> list[int]:
        """Every prompt's own."""
        return [self.seed + i for i in range(len(self.prompts))]


def draw_candidate(
    ctx: Context, drawing: Drawing, subject: Checkpoint | OnnxGraph | EnginePlan | None, cache: Any | None
) -> None:
    """Draw it by the evaluation's runtime into `ctx.out`, with images.json, and ranges.json where inputs could be counted.

    `subject` is what the runtime runs, None for the plain model; `cache` a CacheView that is applied. Raises GateError for
    what is no picture."""
    eval = drawing.eval
    with RUNTIMES[eval.runtime].running(ctx, drawing.pipeline, subject, cache, texts=False, **eval.options) as run:
        with run.counted() if run.counted else nullcontext(list) as counts:
            rows = draw_all(ctx, run, drawing, eval.steps)
            inputs = counts()
        saved = run.saved()
    if inputs:
        RangesFile(len(drawing.prompts), eval.steps, tuple(inputs)).write(ctx.out)
    header = replace(about(eval, subject), cache=saved.summary() if saved else None)
    shown = given(family_of(drawing.pipeline), load(drawing.texts, "cpu"), len(drawing.prompts))
    pictures.write_index(ctx.out, drawing.prompts, drawing.seeds, header, rows, pictures.save_given(ctx.out, shown))


def draw_all(ctx: Context, run: Running, drawing: Drawing, steps: int) -> list[VideoFiles | None]:
    """Draw it into `ctx.out`, in so many denoising steps; of each the files of its video, None of a picture.

    Raises GateError for what is no picture."""
    eval, pipeline = drawing.eval, drawing.pipeline
    arguments, rate = family_of(pipeline).arguments(drawing.model), frame_rate(ctx, pipeline)
    rows: list[VideoFiles | None] = []
    size = run.batch or eval.batch_size
    todo = list(batches(eval.prompts, size))
    encoded = first(load(drawing.texts, "cpu" if run.batch else ctx.device), len(eval.prompts))
    encoded = regroup(encoded, size) if run.batch else encoded
    with ctx.progress(len(todo) * steps) as tick:
        for (start, prompts), batch in zip(todo, encoded, strict=True):
            spare = size - len(prompts) if run.batch else 0  # a graph's batch is fixed: fill the last one up
            these = drawing.seeds[start : start + len(prompts)]
            numbers = [*these, *these[-1:] * spare]
            drawn = draw(run.pipe, batch, numbers, steps, arguments, on_step=tick)[: len(prompts)]
            pictures.check(drawn, prompts)
            rows += videos.save(ctx.out, start, drawn, eval.frames, rate)
            sounds.save(ctx.out, start, run.pipe, len(prompts))
    return rows


def about(eval: RuntimeView, subject: Checkpoint | OnnxGraph | EnginePlan | None) -> ImagesFile:
    """What images.json tells of all of them: runtime, format, and whether that one is simulated."""
    name = None
    if subject is not None:
        name = (CheckpointFile if isinstance(subject, Checkpoint) else OnnxGraphFile).read(subject.path).format
    return ImagesFile(runtime=eval.runtime, format=name, simulated=name not in RUNTIMES[eval.runtime].kernels)
