"""The reference's pictures: full precision, no cache, by torch."""

from diffopt.artifact import EvalEmbeddings, PartEmbeddings, Pipeline
from diffopt.data import pictures, sounds, videos
from diffopt.files.images import ImagesFile, VideoFiles
from diffopt.groups import CallView
from diffopt.groups.eval import ReferenceView
from diffopt.pipeline.draw import batches, draw
from diffopt.pipeline.open import family_of, frame_rate, open_pipeline
from diffopt.pipeline.pixels import given
from diffopt.pipeline.texts import load
from diffopt.stage import Context


def draw_reference(
    ctx: Context, model: CallView, eval: ReferenceView, pipeline: Pipeline, texts: EvalEmbeddings | PartEmbeddings, seed: int
) -> None:
    """Draw the prompts, the first from `seed`, into `ctx.out`. Raises GateError for what is no picture."""
    family = family_of(pipeline)
    pipe, arguments, embedded = open_pipeline(ctx, pipeline, texts=False), family.arguments(model), load(texts, ctx.device)
    rate = frame_rate(ctx, pipeline)
    seeds = [seed + i for i in range(len(eval.prompts))]
    todo = list(batches(eval.prompts, eval.batch_size))
    rows: list[VideoFiles | None] = []
    with ctx.progress(len(todo) * eval.steps) as tick:
        for (first, prompts), batch in zip(todo, embedded, strict=True):
            drawn = draw(pipe, batch, seeds[first : first + len(prompts)], eval.steps, arguments, on_step=tick)
            pictures.check(drawn, prompts)
            rows += videos.save(ctx.out, first, drawn, eval.frames, rate)
            sounds.save(ctx.out, first, pipe, len(prompts))
    shown = pictures.save_given(ctx.out, given(family, embedded, len(seeds)))
    pictures.write_index(ctx.out, eval.prompts.prompts, seeds, ImagesFile(runtime="torch"), rows, shown)
