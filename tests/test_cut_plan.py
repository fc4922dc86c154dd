"""A graph is cut for the blocks that a cache reuses, and for nothing else."""

import pytest

from diffopt.errors import PlanError

EMOJI = ("model=emoji_flux", "export=tensorrt")
DRAWN = (*EMOJI, "eval=emoji", "eval.runtime=onnxruntime", "eval.latency=false")


def step(made, name):
    return next(s for s in made.steps if s.name == name)


def test_without_a_cache_the_graph_keeps_its_identity(plan):
    assert "cache" not in step(plan(*EMOJI), "export").identity["config"]


def test_a_cache_that_decides_while_it_runs_leaves_the_graph_whole_and_a_note_says_so(plan):
    made = plan(*EMOJI, "eval=emoji", "cache=first_block")
    assert step(made, "export").fingerprint == step(plan(*EMOJI), "export").fingerprint
    assert any("first_block" in note and "not cut" in note for note in made.notes)


def test_the_steps_share_graph_and_plan(plan):
    two, three = (plan(*DRAWN, "cache=cachify", f"cache.every={n}") for n in (2, 3))
    for name in ("export", "build"):
        assert step(two, name).fingerprint == step(three, name).fingerprint
    assert step(two, "sample").fingerprint != step(three, "sample").fingerprint
    assert step(two, "export").fingerprint != step(plan(*DRAWN), "export").fingerprint


@pytest.mark.parametrize("other", ["cache.blocks=['single_transformer_blocks.*']", "cache.reuse=output"])
def test_what_is_reused_decides_the_cut(plan, other):
    one, another = (plan(*DRAWN, "cache=cachify", *more) for more in ((), (other,)))
    assert step(one, "export").fingerprint != step(another, "export").fingerprint


def test_blocks_that_are_left_out_and_those_spelled_out_are_one_cut(plan):
    one = plan(*DRAWN, "cache=cachify")
    another = plan(*DRAWN, "cache=cachify", "cache.blocks=['*','!transformer_blocks.0']", "cache.reuse=residual")
    assert step(one, "export").fingerprint == step(another, "export").fingerprint


def test_a_full_precision_baseline_is_not_cut(plan):
    made = plan("+recipe=quickstart", "cache=cachify")
    assert "cache" in step(made, "export").identity["config"]
    assert "cache" not in step(made, "export.baseline").identity["config"]


def test_a_graph_alone_is_cut_and_its_steps_have_no_effect(plan):
    assert "cache" in step(plan(*EMOJI, "cache=cachify"), "export").identity["config"]
    with pytest.raises(PlanError, match=r"cache\.every: has no effect"):
        plan(*EMOJI, "cache=cachify", "cache.every=3")
