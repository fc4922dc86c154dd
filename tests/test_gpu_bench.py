"""On a GPU: a bench of eager, compiled and native on a tiny model, with and without a cache, and what it tells of the GPU."""

import pytest
import torch
from tiny import PROMPTS, bench, prompt_set

from diffopt import models
from diffopt.caches.cachify import Cachify
from diffopt.files.bench import BenchFile
from diffopt.groups.cache import CacheView
from diffopt.groups.eval import BenchView
from diffopt.quality.payoff import floor_milliseconds
from diffopt.stages.bench import bench as stage

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.fixture(scope="module", params=["fp8", "int8_sq"])
def found(request: pytest.FixtureRequest) -> BenchFile:
    b = bench("bfloat16", device="cuda")
    ways = ["eager", "compiled", "native"]
    view = BenchView(prompts=prompt_set(PROMPTS), batch_size=1, steps=4, warmup=1, repeats=3, bench=ways)
    settings = Cachify(method="cachify", blocks=["transformer_blocks.*"], every=2).filled(models.family("flux"))
    ctx = b.context()
    cache = CacheView(method="cachify", settings=settings)
    stage.run(ctx, b.call, cache, view, b.pipeline(), b.checkpoint(request.param), None, 5)
    return BenchFile.read(ctx.out)


def test_every_contender_is_timed_with_its_memory(found: BenchFile) -> None:
    names = [c.name for c in found.contenders]
    assert names == ["eager", "compiled", "native", "compiled+cachify", "native+cachify"]
    for each in found.contenders:
        assert each.milliseconds_per_step
        assert each.memory.peak
        assert each.memory.peak > each.memory.weights
    eager, compiled, native, *cached = found.contenders
    assert eager.memory.weights == compiled.memory.weights > native.memory.weights
    assert all(c.cache and c.cache.hits for c in cached)


def test_floors_are_of_rates_that_this_gpu_has(found: BenchFile) -> None:
    assert {r.kind for r in found.rates} == {"plain", "kernel", "attention"}
    assert found.work
    for each in (c for c in found.contenders if not c.cache):
        least = floor_milliseconds(found.work, found.rates, each.name == "native")
        assert each.floor
        assert each.floor.milliseconds == pytest.approx(least)


def test_the_gpu_is_told(found: BenchFile) -> None:
    assert found.versions["driver"]
    assert found.machine.gpus
