"""sample: the candidate's pictures of the same prompts and seeds, drawn by the chosen runtime."""

from dataclasses import replace
from typing import Annotated

from diffopt.artifact import CacheSearch, Checkpoint, EnginePlan, EvalEmbeddings, Images, MagRatios, OnnxGraph, Pipeline
from diffopt.groups import CallView
from diffopt.groups.cache import CacheView, measures, searches
from diffopt.groups.eval import RuntimeView
from diffopt.runtimes import RUNTIMES
from diffopt.stage import MAIN, Context, Under, stage


@stage(version=2, when="eval", probes=("numerics",))
def sample(
    ctx: Context,
    model: CallView,
    cache: CacheView | None,
    eval: RuntimeView,
    pipeline: Pipeline,
    texts: EvalEmbeddings,
    subject: Checkpoint | OnnxGraph | EnginePlan | None,
    seed: int,
    ratios: Annotated[MagRatios | None, Under(measures, silent=True)] = None,
    search: Annotated[CacheSearch | None, MAIN, Under(searches, silent=True)] = None,
) -> Images:
    from contextlib import nullcontext

    from diffopt.data import pictures
    from diffopt.files.ranges import RangesFile
    from diffopt.runtimes.candidate import Drawing, about, draw_all

    drawing = Drawing(model, eval, pipeline, texts, seed)
    cache = cache and cache.applied(ratios, search)
    with RUNTIMES[eval.runtime].running(ctx, pipeline, subject, cache, texts=False, **eval.options) as run:
        with run.counted() if run.counted else nullcontext(list) as counts:
            rows = draw_all(ctx, run, drawing, eval.steps)
            inputs = counts()
        saved = run.saved()
    if inputs:
        RangesFile(len(drawing.prompts), eval.steps, tuple(inputs)).write(ctx.out)
    header = replace(about(eval, subject), cache=saved.summary() if saved else None)
    pictures.check_distinct(ctx.out, drawing.prompts)
    pictures.write_index(ctx.out, drawing.prompts, drawing.seeds, header, rows)
