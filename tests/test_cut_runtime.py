"""Cut graphs in pipelines: what they draw is what torch draws with the same cache, in every format, run after run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from conftest import some
from tiny import Bench, bench, emoji

from diffopt import models
from diffopt.artifact import EnginePlan
from diffopt.caches.cachify import Cachify, attach, policy
from diffopt.caches.target import Target, session
from diffopt.errors import GateError
from diffopt.groups.cache import CacheView
from diffopt.groups.cut import CutView
from diffopt.machine import environment
from diffopt.pipeline.open import family_of, open_pipeline
from diffopt.runtimes import RUNTIMES, Running
from diffopt.stages.build import BuilderView, build

FAMILIES = some(("flux", "sdxl", "sd3"), ["flux"])
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
        return b.draw(pipe, *arguments), cached.statistics().computed


def drawn(b: Bench, cache: CacheView | None, *arguments: Any, **kw: Any) -> tuple[np.ndarray, float]:
    with running(b, cache, **kw) as run:
        return b.draw(run.pipe, *arguments), computed(run)


def computed(run: Running) -> float:
    saved = run.saved()
    return saved.computed if saved else 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_graph_draws_what_torch_draws_with_the_same_cache(family: str) -> None:
    b, arguments = bench(family=family), (PROMPTS, SEEDS, STEPS)
    cache = view(b)
    theirs, share = by_torch(b, cache, *arguments)
    ours, done = drawn(b, cache, *arguments)
    plain, _ = drawn(b, None, *arguments)
    assert np.abs(ours - theirs).max() < 1e-4
    assert np.abs(ours - plain).max() > 1e-3
    assert done == pytest.approx(share)
    assert done < 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_that_all_compute_draw_what_the_whole_graph_does(family: str) -> None:
    b = bench(family=family)
    cache = view(b, steps=[3])
    with running(b, cache) as run:
        ours = b.draw(run.pipe, PROMPTS, SEEDS, 3)
        assert computed(run) == 1.0
        b.draw(run.pipe, PROMPTS, SEEDS, 4)
    theirs, _ = drawn(b, None, PROMPTS, SEEDS, 3)
    # onnxruntime joins operators across what is a border here, in SDXL's convolutions.
    assert np.abs(ours - theirs).max() <= (1e-5 if family == "sdxl" else 0)


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("part", "near"), some([("self_attention", 1e-3), ("cross_attention", 0.2)], [("cross_attention", 0.2)])
)
def test_attention_alone_is_cut_out(part: str, near: float) -> None:
    # A random model hardly looks at its text: what the cache changes is little beside what the runtimes differ by.
    b, arguments = bench(family="sdxl"), (PROMPTS, SEEDS, STEPS)
    cache = view(b, blocks=["*"], part=part, start=1)
    theirs, share = by_torch(b, cache, *arguments)
    ours, done = drawn(b, cache, *arguments)
    plain, _ = drawn(b, None, *arguments)
    assert np.linalg.norm(ours - theirs) < near * np.linalg.norm(ours - plain)
    assert done == pytest.approx(share)
    assert done < 1


def test_no_run_reuses_what_another_left() -> None:
    b, cache = bench(family="flux"), view(bench(family="flux"))
    with running(b, cache) as run:
        alone = b.draw(run.pipe, ["a banana"], [7], STEPS)
        b.draw(run.pipe, PROMPTS, SEEDS, STEPS)
        assert np.array_equal(b.draw(run.pipe, ["a banana"], [7], STEPS), alone)


def test_a_run_that_an_error_ended_leaves_nothing() -> None:
    b, cache = bench(family="flux"), view(bench(family="flux"))

    def fail() -> None:
        raise RuntimeError("stopped")

    with running(b, cache) as run:
        alone = b.draw(run.pipe, PROMPTS, SEEDS, STEPS)
        with pytest.raises(RuntimeError, match="stopped"):
            b.draw(run.pipe, ["a banana"], [7], STEPS, on_step=fail)
        assert np.array_equal(b.draw(run.pipe, PROMPTS, SEEDS, STEPS), alone)


def test_batches_of_several_sizes_follow_each_other() -> None:
    b, cache = bench(family="flux"), view(bench(family="flux"))
    with running(b, cache, most=2) as run:
        alone = b.draw(run.pipe, PROMPTS, SEEDS, STEPS)
        both = b.draw(run.pipe, [*PROMPTS, "a banana"], [*SEEDS, 7], STEPS)
        assert np.abs(both[:1] - alone).max() < 1e-4
        assert np.array_equal(b.draw(run.pipe, PROMPTS, SEEDS, STEPS), alone)


@pytest.mark.matrix
def test_int8_of_the_embedded_model_is_cut_without_a_change() -> None:
    b = emoji()
    cache = view(b, every=2, start=2)
    with running(b, cache, name="int8_sq") as run:
        whole, _ = drawn(b, None, PROMPTS, SEEDS, 2, name="int8_sq")
        assert np.array_equal(b.draw(run.pipe, PROMPTS, SEEDS, 2), whole)
        assert computed(run) == 1.0
        reused = b.draw(run.pipe, PROMPTS, SEEDS, 6)
        assert computed(run) < 0.9
    plain, _ = drawn(b, None, PROMPTS, SEEDS, 6, name="int8_sq")
    assert 20 < -10 * np.log10(np.square(reused - plain).mean()) < 60


def test_a_cache_that_never_hits_is_refused() -> None:
    b, cache = bench(family="flux"), view(bench(family="flux"), steps=[3])
    with pytest.raises(GateError, match="cache: never hit"), running(b, cache) as run:
        b.draw(run.pipe, PROMPTS, SEEDS, 2)


@pytest.mark.matrix
@needs_builder
@pytest.mark.parametrize("family", ["flux", *(pytest.param(f, marks=pytest.mark.matrix) for f in ("sdxl", "sd3"))])
def test_the_stage_builds_a_plan_of_every_part(family: str) -> None:
    b = bench(family=family)
    graph, context = b.graph("int8_sq", cut=cut_of(view(b))), b.context()
    build.run(context, BuilderView(builder_optimization_level=0), graph)
    head = EnginePlan(context.out, "plan").json("plan.json")
    pieces = graph.json("graph.json")["pieces"]
    assert [p["file"] for p in head["plans"]] == [p["file"].replace(".onnx", ".plan") for p in pieces]
    assert [p["reused"] for p in head["plans"]] == [p["reused"] for p in pieces] == [False, True, False]
    assert head["bytes"] == sum((context.out / p["file"]).stat().st_size for p in head["plans"])


@pytest.mark.matrix
@pytest.mark.parametrize("family", ["sd21", "ltx", "wan", "qwen_image", "chroma", "pixart", "svd"])
def test_every_other_family_is_cut_too(family: str) -> None:
    b = bench(family=family)
    cut = CutView(blocks=("*", "!*blocks.-1"), part="block", reuse="output")
    for part in b.graph(None, cut=cut).by_backbone().values():
        head = part.json("graph.json")
        assert [p["reused"] for p in head["pieces"]].count(True) >= 1
        assert sum(p["bytes"] for p in head["pieces"] if p["reused"]) > 0.3 * head["bytes"]
