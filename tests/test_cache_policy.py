"""Which blocks a cache reuses at which steps: plain values, no model."""

import diffusers
import pytest

from diffopt.caches.policy import Policy, block_names, briefly, check_pattern, segments
from diffopt.caches.schedule import steps_of

UNET = block_names({"down_blocks": 3, "up_blocks": 3}, middle=True)
DIT = block_names({"transformer_blocks": 2, "single_transformer_blocks": 3})


def test_blocks_are_named_in_the_order_in_which_they_are_called():
    assert [*(f"down_blocks.{i}" for i in range(3)), "mid_block", *(f"up_blocks.{i}" for i in range(3))] == UNET
    assert ["transformer_blocks.0", "transformer_blocks.1", *(f"single_transformer_blocks.{i}" for i in range(3))] == DIT


@pytest.mark.parametrize(
    ("patterns", "reused"),
    [
        (["up_blocks.[01]", "mid_block"], ["mid_block", "up_blocks.0", "up_blocks.1"]),
        (["*", "!up_blocks.2"], [n for n in UNET if n != "up_blocks.2"]),
        (
            ["*", "!up_blocks.-1", "!down_blocks.0"],
            ["down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1"],
        ),
        ([r"re:^(?!.*up_blocks\.2)"], [n for n in UNET if n != "up_blocks.2"]),
        (["*", "!re:down|mid", "down_blocks.-1"], ["down_blocks.2", "up_blocks.0", "up_blocks.1", "up_blocks.2"]),
    ],
)
def test_patterns_name_blocks_in_turn(patterns, reused):
    assert Policy(blocks=tuple(patterns), every=2).reused(UNET) == reused


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["conv_out"], r"matches no block \(got 'conv_out'\); there are down_blocks\.0-2, mid_block, up_blocks\.0-2"),
        (["*", "!proj_out"], "matches no block"),
        (["*"], r"matches all 7 blocks.*leave one out, e\.g\. by '!up_blocks\.2'"),
        (["mid_block", "!mid_block"], "leaves no block"),
    ],
)
def test_a_policy_that_names_no_block_or_all_is_refused(patterns, said):
    with pytest.raises(ValueError, match=said):
        Policy(blocks=tuple(patterns), every=2).reused(UNET)


def test_all_blocks_may_have_their_attention_reused():
    assert Policy(blocks=("*",), every=2, part="cross_attention").reused(UNET) == UNET


@pytest.mark.parametrize(
    ("fields", "reused"),
    [
        ({"every": 2}, [1, 3, 5, 7]),
        ({"every": 3}, [1, 2, 4, 5, 7]),
        ({"start": 4}, [4, 5, 6, 7]),
        ({"start": 3, "stop": 6}, [3, 4, 5]),
        ({"every": 2, "start": 4}, [5, 7]),
        ({"steps": (2, 5)}, [2, 5]),
    ],
)
def test_the_steps_that_are_reused(fields, reused):
    found = Policy(blocks=("*",), **fields).schedule(8)
    assert [i for i, yes in enumerate(found) if yes] == reused


def test_the_first_step_is_always_computed():
    assert not Policy(blocks=("*",), start=0).reuses(0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"steps": (3, 9)}, "steps: the run's steps are 0 to 7 (got 9)"),
        ({"start": 8}, "start: the run's steps are 0 to 7 (got 8)"),
        ({"start": 2, "stop": 9}, "stop: the run has 8 steps (got 9)"),
        ({"every": 4, "start": 4, "stop": 5}, "every: reuses nothing in 8 steps (got 4)"),
    ],
)
def test_steps_outside_the_schedule_are_said(fields, said):
    assert Policy(blocks=("*",), **fields).misfit(8).startswith(said)
    assert Policy(blocks=("*",), every=2).misfit(8) is None


def test_reused_blocks_side_by_side_are_one_segment():
    reused = ["down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.1"]
    assert segments(UNET, reused) == [reused[:3], reused[3:]]


def test_names_are_told_by_list():
    assert briefly(UNET) == "down_blocks.0-2, mid_block, up_blocks.0-2"
    assert briefly(DIT[:1]) == "transformer_blocks.0"


@pytest.mark.parametrize("pattern", ["re:(", "", "!", "!re:["])
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(ValueError, match="; "):
        check_pattern(pattern)


# The passes of a pipeline's loop.


def passes(name: str, **settings: object) -> list[tuple[int, int]]:
    scheduler = getattr(diffusers, name)(**settings)
    scheduler.set_timesteps(5)
    found = steps_of(scheduler)
    assert len(found) == len(scheduler.timesteps)
    assert len({*found}) == len(found)
    assert [step for step, _ in found][-1] == 4
    return found


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_most_schedulers_make_one_pass_a_step(name):
    assert passes(name) == [(i, 0) for i in range(5)]


@pytest.mark.parametrize(
    "name",
    ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"],
)
def test_schedulers_of_second_order_make_two_passes_a_step_and_one_at_the_last(name):
    assert passes(name) == [*((i, j) for i in range(4) for j in (0, 1)), (4, 0)]


def test_pndm_corrects_its_first_step():
    assert passes("PNDMScheduler", skip_prk_steps=True) == [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0), (4, 0)]


def test_pndm_makes_four_passes_of_each_of_its_first_three_steps():
    assert passes("PNDMScheduler") == [*((i, j) for i in range(3) for j in range(4)), (3, 0), (4, 0)]
