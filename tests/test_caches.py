"""Block caching is right whatever the guidance, the scheduler and the calls around it, and leaves nothing behind."""

from typing import Any

import numpy as np
import pytest
import torch
from caching import STEPS, cached, caching, drawn, opened, replayed
from torch.utils.flop_counter import FlopCounterMode

from diffopt.caches.target import session

UNET = ("*", "!up_blocks.-1")
REUSED = ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0"]
DIT = ("*", "!transformer_blocks.0")


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return opened("sdxl")


@pytest.fixture(scope="module")
def flux() -> Any:
    return opened("flux")


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return np.array_equal(ours, theirs) and np.isfinite(ours).all()


# What is reused, and when.


def test_odd_steps_give_what_the_step_before_gave(sdxl):
    with replayed(sdxl.unet, REUSED, [None, 0, None, 2]):
        wanted = drawn(sdxl, "sdxl")
    with caching(sdxl, *UNET) as cache:
        assert same(drawn(sdxl, "sdxl"), wanted)
    assert not np.array_equal(wanted, drawn(sdxl, "sdxl"))
    found = cache.statistics()
    assert (found.hits, found.misses) == (2 * len(REUSED), 2 * len(REUSED))


@pytest.mark.parametrize(
    ("fields", "sources"),
    [
        ({"every": 3}, [None, 0, 0, None]),
        ({"every": None, "start": 2}, [None, None, 1, 1]),
        ({"every": None, "start": 1, "stop": 3}, [None, 0, 0, None]),
        ({"every": None, "steps": (1, 3)}, [None, 0, None, 2]),
    ],
)
def test_steps_are_reused_as_the_policy_says(sdxl, fields, sources):
    with replayed(sdxl.unet, REUSED, sources):
        wanted = drawn(sdxl, "sdxl")
    with caching(sdxl, *UNET, **fields):
        assert same(drawn(sdxl, "sdxl"), wanted)


@pytest.mark.parametrize(
    ("scheduler", "sources"),
    [
        # Passes of a step by second order: (0,0) (0,1) (1,0) (1,1) (2,0) (2,1) (3,0); steps 1 and 3 are reused.
        ("HeunDiscreteScheduler", [None, None, 0, 1, None, None, 4]),
        ("KDPM2DiscreteScheduler", [None, None, 0, 1, None, None, 4]),
        # PNDM without Runge-Kutta corrects its first step: (0,0) (0,1) (1,0) (2,0) (3,0).
        ("PNDMScheduler", [None, None, 0, None, 3]),
    ],
)
def test_schedulers_with_more_calls_than_steps_are_followed_by_step(scheduler, sources):
    pipe = opened("sdxl")
    own = dict(pipe.scheduler.config) | {"skip_prk_steps": True}
    pipe.scheduler = getattr(__import__("diffusers"), scheduler).from_config(own)
    with replayed(pipe.unet, REUSED, sources):
        wanted = drawn(pipe, "sdxl")
    with caching(pipe, *UNET):
        assert same(drawn(pipe, "sdxl"), wanted)


def test_guidance_by_a_call_of_its_own_has_a_cache_of_its_own():
    pipe = opened("qwen_image")
    # Two calls to a step: the conditional one and the unconditional one.
    with replayed(pipe.transformer, ["transformer_blocks.4"], [None, None, 0, 1, None, None, 4, 5]):
        wanted = drawn(pipe, "qwen_image")
    with caching(pipe, "transformer_blocks.4") as cache:
        assert same(drawn(pipe, "qwen_image"), wanted)
    assert cache.statistics().hits == 4


def test_guidance_within_a_call_is_cached_with_it(sdxl):
    rows = []
    watch = sdxl.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with caching(sdxl, *UNET) as cache:
        drawn(sdxl, "sdxl", rows=2)
    watch.remove()
    assert rows == [4] * STEPS
    assert cache.statistics().hits == 2 * len(REUSED)


def test_both_backbones_of_wan_are_cached():
    pipe = opened("wan")
    with caching(pipe, "blocks.[1-6]") as cache:
        drawn(pipe, "wan", steps=8)
    assert [sum(s.hits for s in side.segments) > 0 for side in cache.sides] == [True, True]


def test_a_residual_is_added_to_what_the_block_is_given(flux):
    block = flux.transformer.transformer_blocks[1]
    forward, given = block.forward, []

    def wanted_forward(**kwargs: Any) -> Any:
        states = kwargs["encoder_hidden_states"], kwargs["hidden_states"]
        if len(given) % 2:
            given.append(None)
            return tuple(x + r for x, r in zip(states, given[-2], strict=True))
        out = forward(**kwargs)
        given.append([after - before for after, before in zip(out, states, strict=True)])
        return out

    block.forward = wanted_forward
    wanted = drawn(flux, "flux")
    del block.forward
    with caching(flux, "transformer_blocks.1", reuse="residual"):
        assert same(drawn(flux, "flux"), wanted)


def test_blocks_side_by_side_are_kept_once_and_reused_as_each_by_itself(flux):
    with caching(flux, "single_transformer_blocks.*") as cache:
        together = drawn(flux, "flux")
    assert [len(s.modules) for s in cache.sides[0].segments] == [2]
    with replayed(flux.transformer, ["single_transformer_blocks.0", "single_transformer_blocks.1"], [None, 0, None, 2]):
        assert same(together, drawn(flux, "flux"))
    assert cache.statistics().hits == 4


def test_no_block_of_a_reused_segment_is_computed(flux):
    seen: list[str] = []
    watches = [
        flux.transformer.get_submodule(f"{n}.attn").register_forward_pre_hook(lambda *_, n=n: seen.append(n))
        for n in ("transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.0", "single_transformer_blocks.1")
    ]
    with caching(flux, *DIT, reuse="residual"):
        drawn(flux, "flux", steps=2)
    for watch in watches:
        watch.remove()
    assert seen[4:] == ["transformer_blocks.0"]


def test_attention_to_the_text_can_be_reused_alone(sdxl):
    layers = [n for n, m in sdxl.unet.named_modules() if n.endswith("attn2")]
    with replayed(sdxl.unet, layers, [None, None, 1, 1]):
        wanted = drawn(sdxl, "sdxl")
    with caching(sdxl, "*", every=None, start=2, part="cross_attention") as cache:
        assert same(drawn(sdxl, "sdxl"), wanted)
    assert cache.statistics().hits == 2 * len(layers)


def test_a_model_without_attention_to_the_text_alone_is_refused(flux):
    with pytest.raises(ValueError, match=r"^part: these blocks have no cross-attention"):
        cached(flux, "*", part="cross_attention")


# Nothing else is changed.


@pytest.mark.parametrize("tiny", ["sdxl", "flux"])
def test_an_attached_cache_that_never_hits_changes_no_bit(tiny, request):
    pipe = request.getfixturevalue(tiny)
    plain = drawn(pipe, tiny, rows=2)
    with caching(pipe, "*", "!*.0", every=None, start=STEPS) as cache:
        assert same(drawn(pipe, tiny, rows=2), plain)
    found = cache.statistics()
    assert (found.hits, found.computed) == (0, 1.0)
    assert found.misses > 0


def test_an_attached_cache_that_is_off_changes_no_bit(sdxl):
    plain = drawn(sdxl, "sdxl")
    cache = cached(sdxl, *UNET)
    assert same(drawn(sdxl, "sdxl"), plain)
    with session(cache):
        assert not same(drawn(sdxl, "sdxl"), plain)
    assert same(drawn(sdxl, "sdxl"), plain)
    cache.detach()


def test_names_parameters_and_attributes_are_what_they_were(sdxl):
    def seen() -> Any:
        scheduler = {*sdxl.scheduler.__dict__} - {"timesteps", "sigmas", "num_inference_steps"}
        return [*sdxl.unet.state_dict()], [n for n, _ in sdxl.unet.named_modules()], scheduler

    def attributes() -> Any:
        return {n: {*m.__dict__} for n, m in sdxl.unet.named_modules()}

    before, own = seen(), attributes()
    with caching(sdxl, *UNET):
        assert seen()[:2] == before[:2]
        drawn(sdxl, "sdxl")
    assert seen() == before
    assert attributes() == own


def test_what_changes_a_blocks_output_in_place_does_not_change_what_is_kept():
    pipe = opened("sdxl")
    pipe.enable_freeu(s1=0.6, s2=0.4, b1=1.1, b2=1.2)  # multiplies what an up block is given, in place
    with replayed(pipe.unet, REUSED, [None, 0, 0, 0]):
        wanted = drawn(pipe, "sdxl")
    with caching(pipe, *UNET, every=None, start=1):
        assert same(drawn(pipe, "sdxl"), wanted)


# One run and the next.


def fresh(pipe: Any, tiny: str, *blocks: str, rows: int = 1, **fields: Any) -> np.ndarray:
    with caching(pipe, *blocks, **fields):
        return drawn(pipe, tiny, rows=rows)


def test_a_run_of_another_batch_takes_nothing_of_the_one_before(sdxl):
    two, one = fresh(sdxl, "sdxl", *UNET, rows=2), fresh(sdxl, "sdxl", *UNET)
    with caching(sdxl, *UNET):
        for rows, wanted in ((2, two), (1, one), (2, two)):
            assert same(drawn(sdxl, "sdxl", rows=rows), wanted)


def test_a_run_of_another_resolution_takes_nothing_of_the_one_before(sdxl):
    def call(side: int) -> np.ndarray:
        kw = {"num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(3), "output_type": "latent"}
        return sdxl("a red apple", height=side, width=side, **kw).images.numpy()

    with caching(sdxl, *UNET):
        small = call(32)
    with caching(sdxl, *UNET):
        call(48)
        assert same(call(32), small)


def test_a_call_of_other_shapes_within_a_run_is_computed(sdxl):
    # Guidance ends after step 1: the calls of steps 2 and 3 have half the rows, and 2 is computed for 3.
    def end(pipe: Any, index: int, _: Any, state: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            pipe._guidance_scale = 0.0
            for name in ("prompt_embeds", "add_text_embeds", "add_time_ids"):
                state[name] = state[name].chunk(2)[-1]
        return state

    def call() -> np.ndarray:
        kw = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(3), "output_type": "latent"}
        kw |= {"callback_on_step_end": end, "height": 32, "width": 32, "guidance_scale": 3.0}
        kw["callback_on_step_end_tensor_inputs"] = ["prompt_embeds", "add_text_embeds", "add_time_ids"]
        return sdxl("a red apple", **kw).images.numpy()

    with replayed(sdxl.unet, REUSED, [None, 0, None, 2]):
        wanted = call()
    with caching(sdxl, *UNET):
        assert same(call(), wanted)
    with replayed(sdxl.unet, REUSED, [None, 0, None, None]):  # were step 2 reused, its shapes would not be there
        wanted = call()
    with caching(sdxl, *UNET, every=None, steps=(1, 2)):
        assert same(call(), wanted)


def test_a_run_after_an_interrupted_one_is_right(sdxl):
    wanted = fresh(sdxl, "sdxl", *UNET)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with caching(sdxl, *UNET):
        with pytest.raises(KeyboardInterrupt):
            drawn(sdxl, "sdxl", seed=99, on_step=interrupt)
        assert same(drawn(sdxl, "sdxl"), wanted)


def test_a_session_that_an_error_ends_is_off_and_empty(sdxl):
    plain = drawn(sdxl, "sdxl")
    cache = cached(sdxl, *UNET)

    def broken() -> None:
        with session(cache):
            drawn(sdxl, "sdxl")
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken()
    assert same(drawn(sdxl, "sdxl"), plain)
    assert not any(s._kept for side in cache.sides for s in side.segments)
    cache.detach()


def test_two_pipelines_at_once_do_not_see_each_other(sdxl, flux):
    wanted = fresh(sdxl, "sdxl", *UNET), fresh(flux, "flux", *DIT, reuse="residual")
    within: list[np.ndarray] = []
    with caching(sdxl, *UNET), caching(flux, *DIT, reuse="residual"):
        found = drawn(sdxl, "sdxl", on_step=lambda: within.append(drawn(flux, "flux")))
    assert same(found, wanted[0])
    assert len(within) == STEPS
    assert all(same(x, wanted[1]) for x in within)


def test_two_copies_of_one_pipeline_at_once_do_not_see_each_other(sdxl):
    other = opened("sdxl")
    wanted, theirs = fresh(sdxl, "sdxl", *UNET), fresh(other, "sdxl", *UNET, every=3, rows=2)
    within: list[np.ndarray] = []
    with caching(sdxl, *UNET), caching(other, *UNET, every=3):
        assert same(drawn(sdxl, "sdxl", on_step=lambda: within.append(drawn(other, "sdxl", rows=2))), wanted)
    assert all(same(x, theirs) for x in within)


def test_a_second_cache_on_a_backbone_is_refused_and_leaves_the_first(sdxl):
    wanted = fresh(sdxl, "sdxl", *UNET)
    with caching(sdxl, *UNET):
        with pytest.raises(ValueError, match=r"^unet: has a cache already .*; detach that first"):
            cached(sdxl, "mid_block")
        assert same(drawn(sdxl, "sdxl"), wanted)


def test_a_scheduler_that_is_exchanged_is_followed():
    from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler

    pipe = opened("sdxl")
    cache = cached(pipe, *UNET)
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    with session(cache):
        heun = drawn(pipe, "sdxl")
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        drawn(pipe, "sdxl", seed=50)  # begun before the cache could know: every block is computed
        euler = drawn(pipe, "sdxl")
    cache.detach()
    with replayed(pipe.unet, REUSED, [None, 0, None, 2]):
        assert same(euler, drawn(pipe, "sdxl"))
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    with replayed(pipe.unet, REUSED, [None, None, 0, 1, None, None, 4]):
        assert same(heun, drawn(pipe, "sdxl"))


# Compiled and quantized.


class Compiler:
    """A backend that runs graphs as they are, and counts them and their calls."""

    def __init__(self) -> None:
        self.graphs = self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Any:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.calls += 1
            return graph(*args)

        return run


@pytest.mark.parametrize("before", [True, pytest.param(False, marks=pytest.mark.matrix)])
def test_compiled_blocks_are_skipped_outside_of_their_code(before):
    pipe = opened("flux")
    with caching(pipe, *DIT, reuse="residual"):
        wanted = drawn(pipe, "flux", steps=6)
    compiler = Compiler()
    torch._dynamo.reset()
    if before:
        pipe.transformer.compile_repeated_blocks(backend=compiler)
    cache = cached(pipe, *DIT, reuse="residual")
    if not before:
        pipe.transformer.compile_repeated_blocks(backend=compiler)
    with session(cache):
        found = drawn(pipe, "flux", steps=6)
        graphs, calls = compiler.graphs, compiler.calls
        drawn(pipe, "flux", steps=6)
    cache.detach()
    assert np.abs(found - wanted).max() < 1e-5
    assert compiler.graphs == graphs  # whether a block is reused is no guard of its code
    whole = calls // (4 * 3 + 3)  # graphs of a block: three of six steps compute all four, three the first
    assert calls == whole * (4 * 3 + 3)
    assert whole >= 1
    assert all(b._compiled_call_impl is not None and "compile" not in b.__dict__ for b in pipe.transformer.transformer_blocks)
    drawn(pipe, "flux", steps=6)
    assert compiler.calls == 2 * calls + whole * 4 * 6


def test_blocks_of_a_unet_may_hold_compiled_parts():
    pipe = opened("sdxl")
    wanted = fresh(pipe, "sdxl", *UNET)
    torch._dynamo.reset()
    pipe.unet.compile_repeated_blocks(backend="eager")
    assert np.abs(fresh(pipe, "sdxl", *UNET) - wanted).max() < 1e-5


def test_a_backbone_compiled_in_one_piece_is_refused():
    pipe = opened("sdxl")
    pipe.unet.compile(backend="eager")
    cache = cached(pipe, *UNET)
    with pytest.raises(ValueError, match=r"^unet: is compiled in one piece.*compile_repeated_blocks"), session(cache):
        pass
    cache.detach()


def test_attention_within_compiled_blocks_is_refused():
    pipe = opened("sdxl")
    pipe.unet.compile_repeated_blocks(backend="eager")
    cache = cached(pipe, "*", part="cross_attention")
    with pytest.raises(ValueError, match=r"is compiled in one piece, in which its attention cannot be skipped"), session(cache):
        pass
    cache.detach()


# What is counted.


@pytest.mark.parametrize(("tiny", "blocks", "reuse"), [("sdxl", UNET, "output"), ("flux", DIT, "residual")])
def test_the_share_computed_is_that_of_the_products_that_were_made(tiny, blocks, reuse, request):
    pipe = request.getfixturevalue(tiny)
    name = type(next(p for p in (getattr(pipe, "unet", None), getattr(pipe, "transformer", None)) if p is not None)).__name__

    def work() -> int:
        with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            drawn(pipe, tiny)
        return sum(counter.get_flop_counts()[name].values())

    plain = work()
    with caching(pipe, *blocks, reuse=reuse) as cache:
        share = work() / plain
    assert cache.statistics().computed == pytest.approx(share)
    assert share < 0.8
