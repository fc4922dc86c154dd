"""Every cache method behind the one protocol: it hits, counts, forgets between runs and leaves the pipeline as it was."""

from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
import torch
from caching import attached, drawn, opened
from conftest import some
from test_choices import refused

from diffopt import caches, models, registry
from diffopt.caches import METHODS, Method, Settings
from diffopt.caches.target import session
from diffopt.groups.validate import choose
from diffopt.machine.environment import package

STEPS = 8
SETTINGS: dict[str, dict[str, Any]] = {
    "cachify": {"every": 2},
    "first_block": {"threshold": 3.0},
    "pyramid_attention": {"spatial": 2, "cross": None, "timesteps": [100, 900]},
    "faster_cache": {"every": 2, "timesteps": [-1, 900], "weight": 0.5},
    "taylor_seer": {"every": 3, "start": 2, "order": 1},
    "mag_cache": {"threshold": 0.3, "most": 2, "keep": 0.2, "ratios": [1.0, 0.95, 0.97, 0.98]},
    "cache_dit": {"threshold": 3.0, "first": 1, "last": 0, "start": 1},
}
HOOKED = ["first_block", "pyramid_attention", "faster_cache", "taylor_seer", "mag_cache"]
every_method = pytest.mark.parametrize(
    "method",
    [
        m
        if m != "cache_dit"
        else pytest.param(m, marks=pytest.mark.skipif(package("cache-dit") is None, reason="not installed"))
        for m in SETTINGS
    ],
)


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return {name: opened(name) for name in ("flux", "ltx", "wan")}


def test_every_method_of_ours_is_tried_here():
    assert [*METHODS] == [*caches.OURS] == [*SETTINGS]


@every_method
@pytest.mark.parametrize("tiny", some(["flux", "wan"], ["flux"]))
def test_a_method_hits_and_forgets_between_runs_and_leaves_the_pipeline_as_it_was(method, tiny, pipes):
    pipe = pipes[tiny]
    plain = drawn(pipe, tiny, steps=STEPS)
    cache, order = attached(pipe, method, **SETTINGS[method]), [*pipe.transformer._modules]
    assert np.array_equal(drawn(pipe, tiny, steps=STEPS), plain)
    with session(cache):
        first = drawn(pipe, tiny, steps=STEPS)
        other = drawn(pipe, tiny, rows=2, seed=50, steps=STEPS)
        assert np.array_equal(drawn(pipe, tiny, steps=STEPS), first)
    found = cache.statistics()
    cache.detach()
    assert not np.array_equal(first, plain)
    assert np.isfinite(first).all()
    assert np.isfinite(other).all()
    assert [*pipe.transformer._modules] == order
    assert found.hits > 0
    assert found.misses > 0
    assert 0.2 < found.computed < 0.95
    assert np.array_equal(drawn(pipe, tiny, steps=STEPS), plain)


@every_method
def test_a_run_after_an_interrupted_one_is_right(method, pipes):
    pipe = pipes["flux"]
    cache = attached(pipe, method, **SETTINGS[method])
    ends = iter(range(STEPS))

    def interrupt() -> None:
        if next(ends) == 3:
            raise KeyboardInterrupt

    with session(cache):
        wanted = drawn(pipe, "flux", steps=STEPS)
        with pytest.raises(KeyboardInterrupt):
            drawn(pipe, "flux", seed=99, steps=STEPS, on_step=interrupt)
        assert np.array_equal(drawn(pipe, "flux", steps=STEPS), wanted)
    cache.detach()


def outputs(method: str, steps: int, **fields: Any) -> list[Any]:
    """What one attention layer gave at each of the two calls of each step of a guided pipeline."""
    pipe = opened("qwen_image")
    layer, given = pipe.transformer.transformer_blocks[3].attn, []
    cache = attached(pipe, method, **fields)
    with session(cache):
        layer.register_forward_hook(lambda _m, _a, out: given.append(out[0].clone()))
        drawn(pipe, "qwen_image", steps=steps)
    cache.detach()
    return given


def test_attention_that_is_broadcast_is_that_of_the_same_prediction_a_step_before():
    given = outputs("pyramid_attention", 4, spatial=2, cross=None, timesteps=[-1, 1000])
    assert [torch.equal(given[i], given[i - 2]) for i in range(2, 8)] == [True, True, False, False, True, True]
    assert not any(torch.equal(given[i], given[i - 1]) for i in range(1, 8))


def test_attention_that_is_drawn_on_is_drawn_on_from_the_same_prediction():
    given = outputs("faster_cache", 4, every=2, timesteps=[-1, 1000], weight=0.0)  # of weight 0: used again
    assert [torch.equal(given[i], given[i - 2]) for i in range(2, 8)] == [True, True, False, False, True, True]


def test_attention_that_is_extrapolated_is_extrapolated_from_the_same_prediction():
    given = outputs("taylor_seer", 4, every=9, start=2, order=1)
    for i in (4, 5):  # steps 0 and 1 are computed, 2 is not
        wanted = given[i - 2] + (given[i - 2] - given[i - 4])
        assert torch.allclose(given[i], wanted, atol=1e-4)


def test_mag_cache_counts_the_passes_of_a_scheduler_of_second_order():
    pipe = opened("wan_ti2v", "FlowMatchHeunDiscreteScheduler")
    # Kept for the first 60% of 7 passes, which is 4; a cache that counts calls to 4, as the ratios are, would begin anew.
    cache = attached(pipe, "mag_cache", threshold=5.0, most=9, keep=0.6, ratios=[1.0, 0.9, 0.9, 0.9])
    with session(cache):
        drawn(pipe, "wan_ti2v", steps=4)
    found = cache.statistics()
    cache.detach()
    assert (found.hits, found.misses) == (2 * 3 * 7, 2 * 4 * 7)  # two predictions, 7 blocks


@pytest.mark.parametrize("method", HOOKED)
def test_a_backbone_with_a_cache_of_diffusers_takes_no_other(method, pipes):
    from diffusers import FirstBlockCacheConfig

    pipe = pipes["ltx"]
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match=r"^transformer: has a cache already"):
        attached(pipe, method, **SETTINGS[method])
    pipe.transformer.disable_cache()


def test_a_cache_that_finds_nothing_to_cache_says_so(pipes):
    cache = attached(pipes["flux"], "pyramid_attention", spatial=None, cross=2, timesteps=[100, 900])  # it has none
    with pytest.raises(ValueError, match=r"^transformer: there is nothing in it that this cache knows"), session(cache):
        pass
    cache.detach()


@pytest.mark.parametrize("method", HOOKED)
def test_methods_that_build_on_diffusers_hooks_say_which_families_they_do_not_know(method):
    unknown = {n for n in models.names() if METHODS[method].supports(models.family(n)) is not None}
    assert unknown == {n for n in models.names() if not models.family(n).block_cache}
    assert "diffusers'" in (METHODS[method].supports(models.family("sdxl")) or "")


@pytest.mark.parametrize("name", models.names())
def test_every_family_has_a_policy_of_its_own(name):
    family = models.family(name)
    filled = METHODS["cachify"].settings(method="cachify").filled(family)
    assert filled.blocks
    assert filled.every == family.cached_every
    assert filled.misfit(family, 20) is None


def test_the_originals_defaults_for_sdxl_and_sd3():
    from diffopt.caches.cachify import policy
    from diffopt.caches.policy import block_names

    def reused(name: str, blocks: dict[str, int], middle: bool = False) -> list[str]:
        return policy(METHODS["cachify"].settings(method="cachify").filled(models.family(name))).reused(
            block_names(blocks, middle)
        )

    downs = ["down_blocks.0", "down_blocks.1", "down_blocks.2"]
    assert reused("sdxl", {"down_blocks": 3, "up_blocks": 3}, True) == [*downs, "mid_block", "up_blocks.0", "up_blocks.1"]
    assert reused("sd3", {"transformer_blocks": 24}) == [f"transformer_blocks.{i}" for i in range(16)]


# The group.


@pytest.fixture
def chosen(config):
    """`chosen(method="cachify", every=1)` is a composed recipe with these for `cache`."""
    return lambda **fields: config("+recipe=quickstart") | {"cache": fields}


BAD = [
    ("cachify", {"every": 1}, "cache.every: must be greater than or equal to 2"),
    ("cachify", {"every": True}, "cache.every: "),
    ("cachify", {"blocks": []}, "cache.blocks: "),
    ("cachify", {"blocks": ["re:("]}, "cache.blocks.0: is not a regular expression"),
    ("cachify", {"steps": [0, 1]}, "cache.steps.0: must be greater than or equal to 1"),
    ("cachify", {"steps": [3, 1]}, "cache.steps: are not in order"),
    ("cachify", {"steps": [1], "every": 2}, "cache.every: says otherwise than steps=[1]"),
    ("cachify", {"start": 4, "stop": 4}, "cache.stop: is not after start=4"),
    ("cachify", {"stop": 4}, "cache.stop: needs where it begins"),
    ("cachify", {"part": "feed_forward"}, "cache.part: must be"),
    ("cachify", {"part": "cross_attention", "reuse": "residual"}, "cache.reuse: attention is reused by its output"),
    ("cachify", {"threshold": 0.1}, "cache.threshold: no such key"),
    ("first_block", {"threshold": 0.1, "every": 2}, "cache.every: no such key"),
    ("pyramid_attention", {"spatial": None, "cross": None, "timesteps": [1, 2]}, "cache.spatial: nothing is reused"),
    ("pyramid_attention", {"spatial": 2, "cross": None, "timesteps": [800, 100]}, "cache.timesteps: is not a span"),
    ("taylor_seer", {"every": 5, "start": 3, "stop": 2, "order": 1}, "cache.stop: is not after start=3"),
    ("mag_cache", {"threshold": 0.1, "most": 3, "keep": 0.2, "ratios": "???"}, "cache.ratios: is not set"),
    (
        "deep",
        {"anything": 1},
        "cache.method: is not a cache method that is installed (got 'deep'); there are cachify, first_block",
    ),
]


@pytest.mark.parametrize(("method", "fields", "said"), BAD)
def test_a_wrong_setting_gets_one_line(chosen, method, fields, said):
    (line,) = refused(chosen(method=method, **fields))
    assert line.startswith(said)
    assert "; " in line


@pytest.mark.parametrize("method", list(SETTINGS))
def test_right_settings_are_let_through(chosen, method):
    found = choose(chosen(method=method, **SETTINGS[method])).cache
    assert isinstance(found, METHODS[method].settings)


class Every(Settings):
    nth: int


ROTATING = Method("rotating", Every, attach=lambda *_: None, knob=("nth", "lower it"))


def test_another_packages_method_plugs_in_by_an_entry_point(chosen, monkeypatch):
    point = EntryPoint("rotating", "test_cache_methods:ROTATING", "diffopt.caches")
    monkeypatch.setattr(registry, "entry_points", lambda group, **_: [point] if group == point.group else [])
    assert [*METHODS] == [*caches.OURS, "rotating"]
    assert choose(chosen(method="rotating", nth=3)).cache.nth == 3
    (line,) = refused(chosen(method="rotating", nth="x"))
    assert line.startswith("cache.nth: ")
