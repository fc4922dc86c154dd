"""The pictures of a candidate: the evaluation's prompts and seeds by a runtime."""

from typing import Any

from diffopt.artifact import Checkpoint, EvalEmbeddings, OnnxGraph, Pipeline
from diffopt.data import pictures, videos
from diffopt.groups import CallView
from diffopt.groups.eval import RuntimeView
from diffopt.pipeline.draw import batches, draw
from diffopt.pipeline.open import family_of, frame_rate
from diffopt.pipeline.texts import first, load, regroup
from diffopt.runtimes import RUNTIMES, Running
from diffopt.stage import Context


def draw_all(
    ctx: Context,
    run: Running,
    model: CallView,
    eval: RuntimeView,
    pipeline: Pipeline,
    texts: EvalEmbeddings,
    seed: int,
    steps: int,
) -> list[dict[str, object]]:
    """Draw them into `ctx.out`; what there is to tell of each. `texts` may be of more prompts, of which these are the first.

    Raises GateError for what is no picture."""
    arguments, rate = family_of(pipeline).arguments(model), frame_rate(ctx, pipeline)
    seeds = seeds_of(eval, seed)
    rows: list[dict[str, object]] = []
    size = run.batch or eval.batch_size
    todo = list(batches(eval.prompts, size))
    encoded = first(load(texts, "cpu" if run.batch else ctx.device), len(eval.prompts))
    encoded = regroup(encoded, size) if run.batch else encoded
    with ctx.progress(len(todo) * steps) as tick:
        for (start, prompts), batch in zip(todo, encoded, strict=True):
            spare = size - len(prompts) if run.batch else 0  # a graph's batch is fixed: fill the last one up
            these = seeds[start : start + len(prompts)]
            numbers = [*these, *these[-1:] * spare]
            drawn = draw(run.pipe, batch, numbers, steps, arguments, on_step=tick)[: len(prompts)]
            pictures.check(drawn, prompts)
            rows += videos.save(ctx.out, start, drawn, eval.frames, rate)
    return rows


def seeds_of(eval: RuntimeView, seed: int) -> list[int]:
    """Every prompt's own."""
    return [seed + i for i in range(len(eval.prompts))]


def about(eval: RuntimeView, subject: Checkpoint | OnnxGraph | None) -> dict[str, Any]:
    """What images.json tells of all of them: runtime, format, and whether that one is simulated."""
    name = None
    if subject is not None:
        name = subject.json("checkpoint.json" if isinstance(subject, Checkpoint) else "graph.json")["format"]
    return {"runtime": eval.runtime, "format": name, "simulated": name not in RUNTIMES[eval.runtime].kernels}
