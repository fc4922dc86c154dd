"""sample: the candidate's pictures of the same prompts and seeds, drawn by the chosen runtime."""

from typing import Annotated

from diffopt.artifact import (
    CacheSearch,
    CandidateEmbeddings,
    Checkpoint,
    EnginePlan,
    EvalEmbeddings,
    Images,
    ImagesPart,
    MagRatios,
    OnnxGraph,
    Pipeline,
)
from diffopt.groups import CallView
from diffopt.groups.cache import CacheView, measures, searches
from diffopt.groups.eval import RuntimeView
from diffopt.groups.parts import parted, slims_whole, whole
from diffopt.stage import MAIN, Context, Under, stage


@stage(version=2, when="eval", probes=("numerics",))
def sample(
    ctx: Context,
    model: CallView,
    cache: CacheView | None,
    eval: RuntimeView,
    pipeline: Pipeline,
    texts: Annotated[EvalEmbeddings | None, Under(whole, silent=True)],
    subject: Checkpoint | OnnxGraph | EnginePlan | None,
    seed: int,
    ratios: Annotated[MagRatios | None, Under(measures, silent=True)] = None,
    search: Annotated[CacheSearch | None, MAIN, Under(searches, silent=True)] = None,
    own: Annotated[CandidateEmbeddings | None, Under(slims_whole, silent=True)] = None,
    parts: Annotated[tuple[ImagesPart, ...], Under(parted, silent=True)] = (),
) -> Images:
    from diffopt.data import picture_parts, pictures
    from diffopt.runtimes.candidate import Drawing, draw_candidate

    if texts is None:
        picture_parts.join(ctx.out, [p.path for p in parts])
    else:
        drawing = Drawing(model, eval, pipeline, own or texts, seed)
        draw_candidate(ctx, drawing, subject, cache and cache.applied(ratios, search))
    pictures.check_distinct(ctx.out, eval.prompts.prompts)
