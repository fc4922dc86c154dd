"""alternative: the pictures that the same arithmetic gives without a cache, by fewer steps.

How much a cache leaves out is known when it has run, of most methods not before: so the cached pictures are an input.
images.json tells `steps`, and `arithmetic`: the share of that of all steps, as `cache.computed` is of the cached run.
"""

from dataclasses import replace
from typing import Annotated, Any

from diffopt.artifact import CandidateEmbeddings, Checkpoint, EnginePlan, EvalEmbeddings, Images, OnnxGraph, Pipeline
from diffopt.files.images import ImagesFile
from diffopt.groups import CallView
from diffopt.groups.eval import RuntimeView
from diffopt.groups.format import slims
from diffopt.runtimes import RUNTIMES
from diffopt.stage import MAIN, Context, Under, stage
from diffopt.view import Choices

ROUNDED = 1e-5
"""Of a share: what its rounding in images.json can add."""


def fewer_steps(choices: Choices) -> bool:
    return choices.compared == "fewer_steps"


@stage(version=1, when="eval", probes=("numerics",), only=fewer_steps)
def alternative(
    ctx: Context,
    model: CallView,
    eval: RuntimeView,
    pipeline: Pipeline,
    texts: EvalEmbeddings,
    subject: Checkpoint | OnnxGraph | EnginePlan | None,
    cached: Annotated[Images, MAIN],
    seed: int,
    own: Annotated[CandidateEmbeddings | None, Under(slims, silent=True)] = None,
) -> Images:
    from diffopt.data import pictures
    from diffopt.runtimes.candidate import Drawing, about, draw_all

    drawing = Drawing(model, eval, pipeline, own or texts, seed)
    saved = ImagesFile.read(cached.path).cache
    assert saved is not None
    with RUNTIMES[eval.runtime].running(ctx, pipeline, subject, None, texts=False, **eval.options) as run:
        steps, share = equal(run.pipe.scheduler, eval.steps, saved.computed)
        rows = draw_all(ctx, run, drawing, steps)
    header = replace(about(eval, subject), steps=steps, arithmetic=round(share, 6))
    pictures.check_distinct(ctx.out, drawing.prompts)
    pictures.write_index(ctx.out, drawing.prompts, drawing.seeds, header, rows)


def equal(scheduler: Any, steps: int, computed: float) -> tuple[int, float]:
    """The fewest steps whose arithmetic is not below the share `computed` of that of `steps`, and their own share.

    A pass of the backbone costs the same in every step; a scheduler of second order makes two in most.
    """
    from diffopt.caches.schedule import passes

    whole = passes(scheduler, steps)
    shares = {n: passes(scheduler, n) / whole for n in range(1, steps + 1)}
    found = next((n for n, share in shares.items() if share >= computed - ROUNDED), steps)
    return found, shares[found]
