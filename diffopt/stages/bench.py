"""bench: ways to run one model in turn, in one process, on a named machine, beside the floor of their arithmetic."""

from typing import Annotated

from diffopt.artifact import Bench, CacheSearch, Checkpoint, EnginePlan, MagRatios, OnnxGraph, Pipeline
from diffopt.files.bench import BenchFile
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.graph import OnnxGraphFile
from diffopt.files.machine import Machine
from diffopt.files.pipeline import PipelineFile
from diffopt.groups import CallView
from diffopt.groups.cache import CacheView, measures, searches
from diffopt.groups.eval import BenchView, benches
from diffopt.runtimes import contenders
from diffopt.runtimes.room import room
from diffopt.stage import MAIN, Context, Under, stage


@stage(version=2, when="eval", probes=("numerics", "machine", "modelopt", "onnxruntime"))
def bench(
    ctx: Context,
    model: CallView,
    cache: CacheView | None,
    eval: BenchView,
    pipeline: Pipeline,
    checkpoint: Annotated[Checkpoint | None, Under(benches("native"))],
    graph: Annotated[OnnxGraph | None, Under(benches("onnxruntime"))],
    seed: int,
    ratios: Annotated[MagRatios | None, Under(measures, silent=True)] = None,
    search: Annotated[CacheSearch | None, MAIN, Under(searches, silent=True)] = None,
    plan: Annotated[EnginePlan | None, Under(benches("tensorrt"), silent=True)] = None,
) -> Bench:
    from diffopt.machine import gpu_state
    from diffopt.machine.environment import machine
    from diffopt.pipeline.open import family_of
    from diffopt.runtimes.arithmetic import measured
    from diffopt.runtimes.lap import Script
    from diffopt.runtimes.side_by_side import Opener
    from diffopt.runtimes.turns import Results, opened, timed

    pinned, runs = PipelineFile.read(pipeline.path), {n: x for n, x in (("onnxruntime", graph), ("tensorrt", plan)) if x}
    graphs = next((OnnxGraphFile.read(x.path) for x in runs.values()), None)
    head = CheckpointFile.read(checkpoint.path) if checkpoint else graphs
    format, batch = head.format if head else None, graphs.batch_size if graphs else eval.batch_size
    method, base = cache.method if cache else None, contenders.base(eval.bench)
    given = eval.prompts.given().prompts
    with room(eval.bench, pinned, format), Opener(ctx, pipeline, checkpoint, runs, eval.cuda_graph) as opener:
        encode, encodes = opener.encoder([given[i % len(given)] for i in range(batch)], model)
        script = Script(encode, [seed + i for i in range(batch)], eval.steps, family_of(pipeline).arguments(model))
        there, seen = opened(
            opener, contenders.entries(eval.bench, method), cache and cache.applied(ratios, search), script, base
        )
        before, after = timed(ctx, there, script, eval.warmup, eval.repeats)
        work, rates = measured(ctx, pipeline, seen, eval.steps, opener.kernels(), format)
        results = Results(there, base, batch, eval.steps, format, pinned.dtype, work, rates)
        found = results.contenders()
    BenchFile(
        format=format,
        dtype=pinned.dtype,
        machine=Machine(**machine()),
        versions=gpu_state.versions(),
        before=before,
        after=after,
        batch_size=batch,
        steps=eval.steps,
        warmup=eval.warmup,
        repeats=eval.repeats,
        encodes=encodes,
        work=work,
        rates=rates,
        base=base,
        contenders=found,
        headline=contenders.headline(eval.bench, method),
    ).write(ctx.out)
