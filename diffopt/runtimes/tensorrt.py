"""tensorrt: the engine plan on an NVIDIA GPU, by TensorRT, or by TensorRT-RTX where only that is installed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from diffopt.artifact import EnginePlan, Pipeline
from diffopt.caches.cachify import Cachify, policy
from diffopt.caches.loop import Loop
from diffopt.caches.policy import Policy
from diffopt.files.graph import OUTPUT, OnnxGraphFile
from diffopt.files.plan import EnginePlanFile
from diffopt.groups.cache import CacheView
from diffopt.models import Family
from diffopt.pipeline.open import family_of, open_around
from diffopt.runtimes import Running, Under
from diffopt.runtimes.cut_graph import Change, CutGraph, Run
from diffopt.runtimes.engines import Engines
from diffopt.runtimes.hits import check_hits
from diffopt.runtimes.stand_in import CutStandIn, Feeds, StandIn, Values, looped
from diffopt.stage import Context

VALUES: Values = (lambda x: x, lambda x: x)
"""The parts pass torch's tensors."""


@contextmanager
def running(
    ctx: Context, pipeline: Pipeline, subject: EnginePlan, cache: CacheView | None, *, texts: bool, cuda_graph: bool = False
) -> Iterator[Running]:
    """A pipeline whose backbone is the plan, for the graph's own batch size. The other parts stay with torch, on the GPU.

    With a cache it is the plans of a graph that is cut for it. Raises GateError where nothing was reused.
    """
    with opened(ctx, pipeline, subject, texts=texts, cuda_graph=cuda_graph)(cache) as run:
        yield run
    if cache and (saved := run.saved()):
        check_hits(cache, saved)


def opened(ctx: Context, pipeline: Pipeline, subject: EnginePlan, *, texts: bool, cuda_graph: bool = False) -> Under:
    """The same under several caches in turn that reuse the blocks the graph is cut at; one that never hits is let through.

    Raises PlanError for a plan that does not run here.
    """
    family, head = family_of(pipeline), EnginePlanFile.read(subject.path)
    engines = Engines(ctx.device, ctx.compiled, cuda_graph)
    plans = {name: OpenPlan(engines, plan, head, family) for name, plan in subject.by_backbone().items()}
    pipe, own = open_around(ctx, pipeline, texts=texts)
    batch = OnnxGraphFile.read(subject.path).batch_size

    @contextmanager
    def under(cache: CacheView | None) -> Iterator[Running]:
        try:
            if cache is None:
                for name, plan in plans.items():
                    setattr(pipe, name, plan.whole(own[name]))
                yield Running(pipe, batch)
                return
            assert isinstance(cache.settings, Cachify)
            steps = policy(cache.settings.filled(family))

            def made(loop: Loop) -> Iterator[tuple[str, CutStandIn]]:
                for name, plan in plans.items():
                    yield name, plan.cut(steps, loop, own[name])

            with looped(pipe, made) as savings:
                yield Running(pipe, batch, savings)
        finally:
            engines.close()

    return under


class OpenPlan:
    """The plan of one backbone: one file, or one a part of a graph that is cut."""

    def __init__(self, engines: Engines, plan: EnginePlan, head: EnginePlanFile, family: Family):
        self.engines, self.family = engines, family
        self.graph = OnnxGraphFile.read(plan.path)
        files = [(plan.path / part.file).with_suffix(".plan") for part in self.graph.parts]
        self.runs: Sequence[Run] = [engines.open(file, head) for file in files]

    def whole(self, backbone: Any) -> StandIn:
        """What stands where `backbone` stood, which may be empty."""
        (run,) = self.runs

        def compute(feeds: Feeds) -> torch.Tensor:
            (found,) = run(feeds, [OUTPUT])
            made: torch.Tensor = found
            return made

        return StandIn(compute, self.graph, self.family, backbone, self.engines.device)

    def cut(self, policy: Policy, loop: Loop, backbone: Any) -> CutStandIn:
        """The same of the parts. What passes between them is not copied."""
        parts = CutGraph(self.graph.parts, self.runs, Change(torch.sub, torch.add), policy.reuses)
        return CutStandIn(parts, VALUES, loop, self.graph, self.family, backbone, self.engines.device)
