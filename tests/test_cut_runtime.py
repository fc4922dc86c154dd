"""Cut graphs in pipelines: what they draw is what torch draws with the same cache, in every format, run after run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from tiny import Bench, bench, emoji

from diffopt import environment, models
from diffopt.artifact import EnginePlan
from diffopt.caches.cachify import Cachify, attach, policy
from diffopt.caches.target import Target, session
from diffopt.groups.cache import CacheView
from diffopt.groups.cut import CutView
from diffopt.pipeline.open import family_of, open_pipeline
from diffopt.runtimes import RUNTIMES, Running
from diffopt.stages.build import BuilderView, build

FAMILIES = ("flux", "sdxl", "sd3")
PROMPTS, SEEDS, STEPS = ["a red apple"], [5], 4
needs_builder = pytest.mark.skipif(environment.tensorrt() is None, reason="no engine builder is installed")


def view(b: Bench, **fields: Any) -> CacheView:
    """The family's own policy, but for the fields given. SD3's leaves out eight blocks, of which the tiny one has three."""
    own = {"blocks": ["*", "!transformer_blocks.-1"]} if b.family == "sd3" else {}
    settings = Cachify(method="cachify", **own | fields)
    return CacheView(method="cachify", settings=settings.filled(models.family(b.family)))


def cut_of(cache: CacheView) -> CutView:
    found = policy(cache.settings)
    return CutView(blocks=found.blocks, part=found.part, reuse=found.reuse)


@contextmanager
def running(b: Bench, cache: CacheView | None, name: str | None = None, **kw: Any) -> Iterator[Running]:
    graph = b.graph(name, cut=cut_of(cache) if cache else None, **kw)
    with RUNTIMES["onnxruntime"].running(b.context(), b.pipeline(), graph, cache, texts=True) as run:
        yield run


def by_torch(b: Bench, cache: CacheView, *arguments: Any) -> tuple[np.ndarray, float]:
    """What the plain backbone draws with its blocks cached, and the share of arithmetic that was done."""
    pipe = open_pipeline(b.context(), b.pipeline())
    names = b.pipeline().json("pipeline.json")["backbones"]
    cached = attach(Target(pipe, family_of(b.pipeline()), {n: getattr(pipe, n) for n in names}), cache.settings)
    with session(cached):
        drawn = b.draw(pipe, *arguments)
        return drawn, cached.statistics().computed


def drawn(b: Bench, cache: CacheView | None, *arguments: Any, **kw: Any) -> tuple[np.ndarray, float]:
    with running(b, cache, **kw) as run:
        return b.draw(run.pipe, *arguments), run.computed()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_graph_draws_what_torch_draws_with_the_same_cache(family: str) -> None:
    b, arguments = bench(family=family), (PROMPTS, SEEDS, STEPS)
    cache = view(b)
    theirs, share = by_torch(b, cache, *arguments)
    ours, computed = drawn(b, cache, *arguments)
    plain, _ = drawn(b, None, *arguments)
    assert np.abs(ours - theirs).max() < 1e-4
    assert np.abs(ours - plain).max() > 1e-3
    assert computed == pytest.approx(share)
    assert computed < 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_that_all_compute_draw_what_the_whole_graph_does(family: str) -> None:
    b = bench(family=family)
    cache = view(b, steps=[3])
    with running(b, cache) as run:
        ours = b.draw(run.pipe, PROMPTS, SEEDS, 3)
        assert run.computed() == 1.0
        b.draw(run.pipe, PROMPTS, SEEDS, 4)
    theirs, _ = drawn(b, None, PROMPTS, SEEDS, 3)
    # onnxruntime joins operators across what is a border here, in SDXL's convolutions.
    assert np.abs(ours - theirs).max() <= (1e-5 if family == "sdxl" else 0)
