"""MagCache's ratios: measured as diffusers calibrates them, once for a sweep, and used call by call."""

import ast
import json
from contextlib import ExitStack
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from caching import STEPS, drawn, opened
from test_plan import refused
from tiny import SEED, bench, prompt_set

from diffopt.artifact import MagRatios
from diffopt.caches import METHODS
from diffopt.caches.mag_cache import with_ratios
from diffopt.caches.target import session, target_of
from diffopt.pipeline.open import family_of, open_denoiser
from diffopt.pipeline.texts import load, singly
from diffopt.stages.ratios import FewView, RatiosView, ratios


def measured(tiny: str, many: int = 2, steps: int = STEPS) -> MagRatios:
    return _measured(tiny, many, steps)


@cache
def _measured(tiny: str, many: int, steps: int) -> MagRatios:
    b = bench(family=tiny)
    ctx, prompts = b.context(), prompt_set(b.prompts[:many])
    texts = b.encoded(prompt_set(b.prompts[:2]), 2)
    view = FewView(prompts=prompts, steps=steps)
    ratios.run(ctx, b.call, RatiosView(method="mag_cache"), view, b.pipeline(), texts, SEED)
    return MagRatios(ctx.out, "ratios")


def table(tiny: str, **kw: Any) -> dict[str, dict[str, list[float]]]:
    return measured(tiny, **kw).json("ratios.json")["ratios"]


def printed(tiny: str, capsys: Any, row: int = 0) -> list[list[float]]:
    """What diffusers' own calibration prints for a prompt, a list for each call of a step, without any of our code."""
    from diffusers import MagCacheConfig

    b = bench(family=tiny)
    pipe = open_denoiser(b.context(), b.pipeline())
    text = singly(load(b.encoded(prompt_set(b.prompts[:2]), 2), "cpu"), 2)[row]
    pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=STEPS))
    capsys.readouterr()
    with torch.inference_mode():
        pipe(
            **text,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(SEED + row),
            output_type="latent",
            **family_of(b.pipeline()).arguments(b.call),
        )
    return [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines() if line.startswith("[1.0")]


@pytest.mark.parametrize(("tiny", "calls"), [("flux", ["cond"]), ("qwen_image", ["cond", "uncond"])])
def test_the_ratios_of_one_prompt_are_those_that_diffusers_prints(tiny: str, calls: list[str], capsys: Any) -> None:
    ours = table(tiny, many=1)["transformer"]
    assert [*ours] == calls
    assert [*ours.values()] == printed(tiny, capsys)


def test_of_several_prompts_it_is_the_mean_and_its_spread(capsys: Any) -> None:
    found = measured("flux").json("ratios.json")
    each = [printed("flux", capsys, row)[0] for row in range(2)]
    assert found["prompts"] == 2
    assert found["ratios"]["transformer"]["cond"] == pytest.approx(np.mean(each, 0))
    assert found["deviation"]["transformer"]["cond"] == pytest.approx(np.std(each, 0, ddof=1))
    assert found["deviation"]["transformer"]["cond"][-1] > 0


def test_a_second_backbone_has_ratios_where_it_is_called() -> None:
    found = table("wan", many=1, steps=8)
    first, second = found["transformer"]["cond"], found["transformer_2"]["cond"]
    called = [i for i, x in enumerate(second) if x != 1.0]
    assert len(first) == len(second) == 8
    assert called
    assert all(x == 1.0 for x in first[called[0] - 1 :])
    assert all(x != 1.0 for x in first[1 : called[0] - 1])


def test_measuring_leaves_the_pipeline_as_it_was() -> None:
    from diffopt.caches.magnitudes import measured

    pipe = opened("flux")
    plain = drawn(pipe, "flux")
    with measured(target_of(pipe)) as runs:
        assert np.array_equal(drawn(pipe, "flux"), plain)  # nothing is left out
    assert len(runs) == 1
    assert np.array_equal(drawn(pipe, "flux"), plain)
    with measured(target_of(pipe)):  # nothing is claimed any more
        pass
    assert not [k for k in vars(pipe.transformer) if k.startswith("_diffopt")]


def under(pipe: Any, settings: Any) -> np.ndarray:
    """The picture's latents with the cache."""
    cache = METHODS["mag_cache"].attach(target_of(pipe), settings)
    with ExitStack() as stack:
        stack.callback(cache.detach)
        stack.enter_context(session(cache))
        return drawn(pipe, "flux")


def settings(**fields: Any) -> Any:
    return METHODS["mag_cache"].settings(method="mag_cache", **{"threshold": 0.2, "most": 2, "keep": 0.2} | fields)


def test_measured_ratios_are_used_as_the_same_ones_by_hand() -> None:
    pipe, found = opened("flux"), table("flux", many=1)
    ours = under(pipe, with_ratios(settings(threshold=5.0), found))
    assert np.array_equal(ours, under(pipe, settings(threshold=5.0, ratios=found["transformer"]["cond"])))
    assert not np.array_equal(ours, drawn(pipe, "flux"))


def test_each_call_of_a_step_is_decided_by_its_own_ratios() -> None:
    pipe = opened("qwen_image")
    still, moving = [1.0] * STEPS, [1.0, *[3.0] * (STEPS - 1)]

    def count(cond: list[float], uncond: list[float]) -> int:
        cache = METHODS["mag_cache"].attach(
            target_of(pipe), with_ratios(settings(), {"transformer": {"cond": cond, "uncond": uncond}})
        )
        with session(cache):
            drawn(pipe, "qwen_image")
        cache.detach()
        return cache.statistics().hits

    blocks = len(pipe.transformer.transformer_blocks)
    assert count(still, moving) == count(moving, still) == 2 * blocks  # two of steps 1 to 3, at most two in a row


# The plan.

MAG = ("model=emoji_flux", "cache=mag_cache", "eval=emoji")


def steps(plan: Any, *overrides: str, **kw: Any) -> dict[str, Any]:
    return {s.name: s for s in plan(*overrides, **kw).steps}


def test_a_sweep_over_the_threshold_measures_once(plan: Any) -> None:
    a, b = (steps(plan, *MAG, *more) for more in ([], ["cache.threshold=0.2", "cache.most=5", "eval.metrics=[psnr]"]))
    assert a["ratios"].fingerprint == b["ratios"].fingerprint
    assert a["sample"].fingerprint != b["sample"].fingerprint
    assert a["sample"].inputs["ratios"] is a["ratios"]
    assert a["time"].inputs["ratios"] is a["ratios"]


@pytest.mark.parametrize("change", ["eval.steps=10", "cache.prompts=2", "seed=1", "model.guidance_scale=1.5"])
def test_other_prompts_steps_or_guidance_are_measured_anew(plan: Any, change: str) -> None:
    assert steps(plan, *MAG)["ratios"].fingerprint != steps(plan, *MAG, change)["ratios"].fingerprint


def test_a_format_shares_the_ratios_of_full_precision(plan: Any) -> None:
    quantized = steps(plan, *MAG, "format=int8", "calib=emoji")
    assert quantized["ratios"].fingerprint == steps(plan, *MAG)["ratios"].fingerprint


def test_ratios_by_hand_are_not_measured(plan: Any) -> None:
    by_hand = steps(plan, "model=flux_dev", "cache=mag_cache_flux", "eval=images")
    assert "ratios" not in by_hand
    (line,) = refused(plan, *MAG, "cache.ratios=[1.0,0.9]", "cache.prompts=8")
    assert line == "cache.prompts: has no effect under these choices, since cache.ratios are given (got 8); drop it"


def test_the_plan_tells_that_they_are_measured(plan: Any) -> None:
    assert "the ratios of magnitudes are measured on 4 prompts, for every cache.threshold once" in plan(*MAG).notes


def test_a_family_that_magcache_does_not_know_is_refused_before_anything_is_measured(plan: Any) -> None:
    (line,) = refused(plan, "model=sdxl", "eval=images", "cache=mag_cache")
    assert line == (
        "cache: diffusers' MagCache does not know the blocks of sdxl (got cache=mag_cache); "
        "choose cache=cachify, or drop the cache"
    )


def test_what_was_measured_is_found_in_the_artifact() -> None:
    found = json.loads((measured("flux").path / "ratios.json").read_text())
    assert found["schema"] == "diffopt.mag-ratios/1"
    assert (found["prompts"], found["steps"]) == (2, STEPS)
