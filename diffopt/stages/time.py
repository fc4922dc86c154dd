"""time: candidate and full-precision baseline in turn, in one process, on a named machine."""

from typing import Annotated, Any, Self

from diffopt.artifact import CacheSearch, Checkpoint, EnginePlan, Latency, MagRatios, OnnxGraph, Pipeline
from diffopt.data.prompts import Prompts
from diffopt.files.latency import LatencyFile
from diffopt.files.machine import Machine
from diffopt.groups import CallView, Eval
from diffopt.groups.cache import CacheView, measures, searches
from diffopt.groups.eval import RuntimeName, options
from diffopt.runtimes import RUNTIMES
from diffopt.stage import BASELINE, MAIN, Context, Under, stage
from diffopt.view import Choices, Group, View


class TimeView(View, of=Eval):
    prompts: Prompts
    steps: int
    runtime: RuntimeName
    warmup: int
    repeats: int
    cuda_graph: bool = False

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        planned = choices.eval is not None and choices.eval.runtime == "tensorrt"
        return cls.fields_read() - (set() if planned else {"cuda_graph"})

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        """Of the prompts only as many as the largest batch that is timed: their number does not change the time."""
        assert isinstance(group, Eval)
        others = {name: getattr(group, name) for name in cls.model_fields if name != "prompts"}
        return [cls(prompts=group.prompts.part(0, 16), **others)]


@stage(version=1, when="eval", probes=("numerics", "machine"))
def time(
    ctx: Context,
    model: CallView,
    cache: CacheView | None,
    eval: TimeView,
    pipeline: Pipeline,
    subject: Checkpoint | OnnxGraph | EnginePlan | None,
    baseline: Annotated[Checkpoint | OnnxGraph | EnginePlan | None, BASELINE],
    seed: int,
    ratios: Annotated[MagRatios | None, Under(measures, silent=True)] = None,
    search: Annotated[CacheSearch | None, MAIN, Under(searches, silent=True)] = None,
) -> Latency:
    from contextlib import ExitStack
    from functools import partial

    from diffopt.machine.environment import machine
    from diffopt.pipeline.open import family_of
    from diffopt.pipeline.texts import encode
    from diffopt.runtimes.stopwatch import Stopwatch, compare, summary

    runtime, arguments = RUNTIMES[eval.runtime], family_of(pipeline).arguments(model)
    given = options(eval.runtime, eval.cuda_graph)
    cache = cache and cache.applied(ratios, search)
    sides: dict[str, tuple[Any, Any]] = {"baseline": (baseline, None)}
    if cache or (subject and subject != baseline):
        sides["candidate"] = (subject, cache)
    with ExitStack() as stack:
        watches = {}
        for name, (artifact, cached) in sides.items():
            run = stack.enter_context(runtime.running(ctx, pipeline, artifact, cached, texts=True, **given))
            texts = partial(encode, ctx, run.pipe, pipeline, model=model)
            watches[name] = Stopwatch(run, texts, eval.prompts.given().prompts, eval.steps, arguments, seed)
        for _ in range(eval.warmup):
            for watch in watches.values():
                watch.warm()
        with ctx.progress(eval.repeats) as tick:
            for _ in range(eval.repeats):  # in turn, so that a change of the machine's speed meets both
                for watch in watches.values():
                    watch.time()
                tick()
    timed = {name: summary(watch) for name, watch in watches.items()}
    LatencyFile(
        runtime=eval.runtime,
        machine=Machine(**machine()),
        batch_size=watches["baseline"].batch,
        steps=eval.steps,
        warmup=eval.warmup,
        repeats=eval.repeats,
        baseline=timed["baseline"],
        candidate=timed.get("candidate"),
        speedup=compare(watches["baseline"], watches["candidate"]) if "candidate" in watches else None,
    ).write(ctx.out)
