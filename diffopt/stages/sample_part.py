"""sample_part: the candidate's pictures of one part of the prompts, as `sample` draws all of them."""

from typing import Annotated

from diffopt.artifact import (
    CacheSearch,
    CandidatePartEmbeddings,
    Checkpoint,
    EnginePlan,
    ImagesPart,
    MagRatios,
    OnnxGraph,
    PartEmbeddings,
    Pipeline,
)
from diffopt.groups import CallView
from diffopt.groups.cache import CacheView, measures, searches
from diffopt.groups.parts import RuntimePartView, parted, slims_parted
from diffopt.stage import MAIN, Context, Under, stage


@stage(version=1, when="eval", probes=("numerics",), only=parted)
def sample_part(
    ctx: Context,
    model: CallView,
    cache: CacheView | None,
    eval: RuntimePartView,
    pipeline: Pipeline,
    texts: PartEmbeddings,
    subject: Checkpoint | OnnxGraph | EnginePlan | None,
    seed: int,
    ratios: Annotated[MagRatios | None, Under(measures, silent=True)] = None,
    own: Annotated[CandidatePartEmbeddings | None, Under(slims_parted, silent=True)] = None,
    search: Annotated[CacheSearch | None, MAIN, Under(searches, silent=True)] = None,
) -> ImagesPart:
    from diffopt.runtimes.candidate import Drawing, draw_candidate

    drawing = Drawing(model, eval, pipeline, own or texts, seed + eval.start)
    draw_candidate(ctx, drawing, subject, cache and cache.applied(ratios, search))
