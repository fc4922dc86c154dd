"""sample: the candidate's pictures of the same prompts and seeds, drawn by the chosen runtime."""

from diffopt.artifact import Checkpoint, EvalEmbeddings, Images, OnnxGraph, Pipeline
from diffopt.groups import CallView
from diffopt.groups.cache import CacheView
from diffopt.groups.eval import RuntimeView
from diffopt.runtimes import RUNTIMES
from diffopt.stage import Context, stage


@stage(version=2, when="eval", probes=("numerics",))
def sample(
    ctx: Context,
    model: CallView,
    cache: CacheView | None,
    eval: RuntimeView,
    pipeline: Pipeline,
    texts: EvalEmbeddings,
    subject: Checkpoint | OnnxGraph | None,
    seed: int,
) -> Images:
    from diffopt import pictures, videos
    from diffopt.pipeline.draw import batches, draw
    from diffopt.pipeline.open import family_of, frame_rate
    from diffopt.pipeline.texts import load, regroup

    runtime, arguments = RUNTIMES[eval.runtime], family_of(pipeline).arguments(model)
    rate = frame_rate(ctx, pipeline)
    seeds = [seed + i for i in range(len(eval.prompts))]
    rows: list[dict[str, object]] = []
    with runtime.running(ctx, pipeline, subject, cache, texts=False) as run:
        size = run.batch or eval.batch_size
        todo = list(batches(eval.prompts, size))
        encoded = load(texts, "cpu" if run.batch else ctx.device)
        encoded = regroup(encoded, size) if run.batch else encoded
        with ctx.progress(len(todo) * eval.steps) as tick:
            for (first, prompts), batch in zip(todo, encoded, strict=True):
                spare = size - len(prompts) if run.batch else 0  # a graph's batch is fixed: fill the last one up
                these = seeds[first : first + len(prompts)]
                numbers = [*these, *these[-1:] * spare]
                drawn = draw(run.pipe, batch, numbers, eval.steps, arguments, on_step=tick)[: len(prompts)]
                pictures.check(drawn, prompts)
                rows += videos.save(ctx.out, first, drawn, eval.frames, rate)
        saved = run.saved()
    about: dict[str, object] = {
        "runtime": eval.runtime,
        "format": _format(subject),
        "simulated": _format(subject) not in runtime.kernels,
        **({"cache": saved.summary()} if saved else {}),
    }
    pictures.check_distinct(ctx.out, eval.prompts.prompts)
    pictures.write_index(ctx.out, eval.prompts.prompts, seeds, about, rows)


def _format(subject: Checkpoint | OnnxGraph | None) -> str | None:
    if subject is None:
        return None
    found: str | None = subject.json("checkpoint.json" if isinstance(subject, Checkpoint) else "graph.json")["format"]
    return found
