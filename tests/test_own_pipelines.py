"""Pipelines of ours that stand in the place of diffusers': they draw the same, and Cosmos' guardrail sees what it should."""

from typing import Any

import diffusers
import guardrail
import numpy as np
import pytest
import torch
from test_families import PROMPTS, called, family_of, pipe
from tiny import STEPS, bench, prompt_set, random_bench, saved

from diffopt.data.prompts import PromptSet
from diffopt.errors import GateError, PlanError
from diffopt.models import cosmos_pipeline
from diffopt.pipeline.open import open_pipeline


def theirs(name: str) -> Any:
    """diffusers' own, called with the prompts, and set as its users set it."""
    own = {"safety_checker": guardrail._checker()()} if name == "cosmos25" else {}
    found = getattr(diffusers, family_of(name).pipeline).from_pretrained(saved(name), **own)
    arguments = family_of(name).arguments(called(name))
    if name == "hunyuan_video15":
        found.guider = found.guider.new(guidance_scale=arguments.pop("guidance_scale"))
        found.tokenizer_max_length, found.vae.use_slicing = 16, True
    else:
        arguments["max_sequence_length"] = 16
    seeds = [torch.Generator().manual_seed(i) for i in (0, 1)]
    texts = {"prompt": PROMPTS, "negative_prompt": ["", ""]}
    return found(**texts, num_inference_steps=STEPS, generator=seeds, output_type="np", **arguments)


@pytest.mark.parametrize(
    "name", ["cosmos25", *(pytest.param(n, marks=pytest.mark.matrix) for n in ("hunyuan_video15", "ltx2"))]
)
def test_a_pipeline_of_ours_draws_what_diffusers_draws(name: str) -> None:
    whole, wanted = pipe(name), theirs(name)
    assert np.array_equal(bench(family=name).draw(whole, PROMPTS, [0, 1], STEPS), wanted.frames)
    if name == "ltx2":
        assert torch.equal(whole.sound, wanted.audio)


def test_cosmos_guardrail_refuses_a_prompt_before_it_is_encoded() -> None:
    b = bench(family="cosmos25")
    with pytest.raises(GateError, match=r"guardrail refuses one \(got 'a weapon'\)"):
        b.encoded(PromptSet("tests", ("a weapon",)), 1)
    assert b.encoded(prompt_set(b.prompts[:1]), 1)


def test_cosmos_guardrail_sees_every_video_and_one_of_random_weights_never(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    guard = cosmos_pipeline.guardrail()
    monkeypatch.setattr(guard, "check_video_safety", lambda frames: seen.append(frames.shape) or frames)
    b = bench(family="cosmos25")
    b.draw(pipe("cosmos25"), PROMPTS, [0, 1], STEPS)
    assert seen == [(5, 32, 32, 3)] * 2
    b.draw(pipe("cosmos25"), PROMPTS, [0, 1], STEPS, decode=False)
    drawn = random_bench("cosmos25")
    drawn.draw(open_pipeline(drawn.context(), drawn.pipeline()), PROMPTS, [0, 1], STEPS)
    assert len(seen) == 2


def test_cosmos_without_its_guardrail_is_refused_by_the_plan_where_its_weights_are_nvidias(
    plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffopt.jobs import checks

    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"cosmos25 is not drawn without the package cosmos_guardrail.*diffopt\[cosmos\]"):
        plan("model=cosmos25_2b", "format=fp8", "calib=videos")
    plan("model=cosmos25_2b", "model.weights=random", "format=fp8", "calib=videos")
