"""The Python API by Model-Optimizer's names: both call forms, functions and texts, and what it refuses."""

import numpy as np
import pytest
from caching import drawn, opened, replayed

from diffopt import cachify
from diffopt.caches.policy import block_names

REUSED = ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0"]


def entry(where, select):
    return {"wildcard_or_filter_func": where, "select_cache_step_func": select}


CONFIG = [entry(lambda name: "up_blocks.1" not in name, lambda step: (step % 2) != 0)]


@pytest.fixture(scope="module")
def opened_sdxl():
    return opened("sdxl")


@pytest.fixture
def pipe(opened_sdxl):
    yield opened_sdxl
    cachify.detach(opened_sdxl)


@pytest.fixture(scope="module")
def plain(opened_sdxl):
    return drawn(opened_sdxl, "sdxl")


@pytest.fixture(scope="module")
def wanted(opened_sdxl, plain):
    with replayed(opened_sdxl.unet, REUSED, [None, 0, None, 2]):
        found = drawn(opened_sdxl, "sdxl")
    assert not np.array_equal(found, plain)
    return found


@pytest.mark.parametrize("arguments", [(CONFIG,), (4, CONFIG), (), (4,)])
def test_it_is_prepared_with_and_without_the_number_of_steps_and_a_config(pipe, arguments, wanted):
    cachify.prepare(pipe, *arguments)
    cachify.enable(pipe)
    with cachify.infer(pipe) as cached_pipe:
        assert np.array_equal(drawn(cached_pipe, "sdxl"), wanted)
    assert cachify.statistics(pipe).hits == 2 * len(REUSED)


@pytest.mark.parametrize("where", ["*_block*[!1]", r"re:^(?!up_blocks\.1)"])
@pytest.mark.parametrize("select", ["every 2", "1,3", "1, 3"])
def test_texts_say_the_same_as_functions(pipe, where, select, wanted):
    other = [] if where.startswith("re:") else [entry("down_blocks.1", select)]
    cachify.prepare(pipe, [entry(where, select), *other])
    assert np.array_equal(drawn(pipe, "sdxl"), wanted)


@pytest.mark.parametrize(("select", "sources"), [("2:", [None, None, 1, 1]), ("1:3", [None, 0, 0, None])])
def test_a_span_of_steps(pipe, select, sources):
    with replayed(pipe.unet, ["mid_block"], sources):
        found = drawn(pipe, "sdxl")
    cachify.prepare(pipe, [entry("mid_block", select)])
    assert np.array_equal(drawn(pipe, "sdxl"), found)


def test_of_entries_for_one_block_the_last_counts(pipe):
    with replayed(pipe.unet, ["mid_block"], [None, None, 1, 1]):
        found = drawn(pipe, "sdxl")
    cachify.prepare(pipe, [entry("mid_block", "every 2"), entry("*mid*", "2:")])
    assert np.array_equal(drawn(pipe, "sdxl"), found)


def test_it_is_on_when_prepared_off_when_disabled_and_on_again_when_enabled(pipe, plain, wanted):
    cachify.prepare(pipe, CONFIG)
    assert np.array_equal(drawn(pipe, "sdxl"), wanted)
    cachify.disable(pipe)
    assert np.array_equal(drawn(pipe, "sdxl"), plain)
    with cachify.infer(pipe):
        assert np.array_equal(drawn(pipe, "sdxl"), wanted)
    assert np.array_equal(drawn(pipe, "sdxl"), plain)
    cachify.enable(pipe)
    cachify.enable(pipe)
    assert np.array_equal(drawn(pipe, "sdxl"), wanted)


def test_prepared_again_the_new_config_counts_and_detached_none(pipe, plain, wanted):
    cachify.prepare(pipe, [entry("mid_block", "1:")])
    cachify.prepare(pipe, CONFIG)
    assert np.array_equal(drawn(pipe, "sdxl"), wanted)
    cachify.detach(pipe)
    assert np.array_equal(drawn(pipe, "sdxl"), plain)


def test_an_error_within_infer_is_the_users_and_the_next_run_is_right(pipe, wanted):
    cachify.prepare(pipe, CONFIG)

    def interrupt() -> None:
        raise ZeroDivisionError

    def broken() -> None:
        with cachify.infer(pipe):
            drawn(pipe, "sdxl", seed=5, on_step=interrupt)

    with pytest.raises(ZeroDivisionError):
        broken()
    assert np.array_equal(drawn(pipe, "sdxl"), wanted)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([entry(lambda name: True, "every 2")], "matches all 5 blocks"),
        ([entry(lambda name: "conv_out" in name, "every 2")], "leaves no block to reuse"),
        ([entry("conv_*", "every 2")], "leaves no block to reuse"),
        ([entry("mid_block", "every 1")], "select_cache_step_func: does not say which steps"),
        ([entry("mid_block", "odd")], "select_cache_step_func: does not say which steps"),
        ([entry("re:(", "every 2")], "is not a regular expression"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_and_leaves_the_pipeline_alone(pipe, config, said, plain):
    with pytest.raises(ValueError, match=said):
        cachify.prepare(pipe, config)
    assert np.array_equal(drawn(pipe, "sdxl"), plain)


def test_a_config_that_reuses_nothing_in_so_many_steps_is_refused(pipe):
    with pytest.raises(ValueError, match="reuses nothing in 4 steps"):
        cachify.prepare(pipe, 4, [entry("mid_block", "9:")])


def test_a_pipeline_that_is_not_prepared_is_refused(pipe):
    with pytest.raises(ValueError, match=r"call cachify\.prepare"):
        cachify.enable(pipe)


def test_a_pipeline_of_no_known_family_is_refused():
    with pytest.raises(ValueError, match=r"^pipe: its blocks are not known \(got a object\)"):
        cachify.prepare(object(), CONFIG)


@pytest.mark.parametrize(
    ("config", "blocks", "left"),
    [
        (cachify.SDXL_DEFAULT_CONFIG, block_names({"down_blocks": 3, "up_blocks": 3}, True), {"up_blocks.2"}),
        (cachify.SVD_DEFAULT_CONFIG, block_names({"down_blocks": 4, "up_blocks": 4}, True), {"up_blocks.3"}),
        (
            cachify.SD3_DEFAULT_CONFIG,
            block_names({"transformer_blocks": 24}),
            {f"transformer_blocks.{i}" for i in range(16, 24)},
        ),
        (
            cachify.PIXART_DEFAULT_CONFIG,
            block_names({"transformer_blocks": 28}),
            {f"transformer_blocks.{i}" for i in range(21, 28)},
        ),
    ],
)
def test_the_originals_configs(config, blocks, left):
    selects = [(e["wildcard_or_filter_func"], cachify._select(e["select_cache_step_func"])) for e in config]
    found = cachify._chosen(selects, blocks)
    assert {*blocks} - {*found} == left
    reused = [step for step in range(6) if next(iter(found.values()))(step)]
    assert reused == ([1, 2, 4, 5] if config is cachify.PIXART_DEFAULT_CONFIG else [1, 3, 5])
