"""reference: the evaluation's prompts and seeds in full precision, with no cache, by torch."""

from diffopt.artifact import EvalEmbeddings, Pipeline, ReferenceImages
from diffopt.files.images import ImagesFile, VideoFiles
from diffopt.groups import CallView, DrawView
from diffopt.stage import Context, stage


@stage(version=2, when="eval", probes=("numerics",))
def reference(
    ctx: Context, model: CallView, eval: DrawView, pipeline: Pipeline, texts: EvalEmbeddings, seed: int
) -> ReferenceImages:
    from diffopt.data import pictures, videos
    from diffopt.pipeline.draw import batches, draw
    from diffopt.pipeline.open import family_of, frame_rate, open_pipeline
    from diffopt.pipeline.texts import load

    pipe, arguments = open_pipeline(ctx, pipeline, texts=False), family_of(pipeline).arguments(model)
    rate = frame_rate(ctx, pipeline)
    seeds = [seed + i for i in range(len(eval.prompts))]
    todo = list(batches(eval.prompts, eval.batch_size))
    rows: list[VideoFiles | None] = []
    with ctx.progress(len(todo) * eval.steps) as tick:
        for (first, prompts), batch in zip(todo, load(texts, ctx.device), strict=True):
            drawn = draw(pipe, batch, seeds[first : first + len(prompts)], eval.steps, arguments, on_step=tick)
            pictures.check(drawn, prompts)
            rows += videos.save(ctx.out, first, drawn, eval.frames, rate)
    pictures.check_distinct(ctx.out, eval.prompts.prompts)
    pictures.write_index(ctx.out, eval.prompts.prompts, seeds, ImagesFile(runtime="torch"), rows)
