"""An INT8 convolution's scale drawn from the denoising steps, as by a calibrator that counts steps as the pipeline does."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import modelopt.torch.quantization as mtq
import pytest
import torch
from conftest import some
from diffusers import DDIMScheduler, UNet2DConditionModel
from test_calibrate_families import Counter, StepCalibrator
from test_calibrate_once import differing
from tiny import bench

from diffopt import formats, models
from diffopt.data.prompts import PromptSet
from diffopt.groups import Calib, ChunkView, ScaleView
from diffopt.groups.calib import counted
from diffopt.quantization import checkpoint, extremes, step_extremes
from diffopt.quantization.extremes import quantizers
from diffopt.quantization.layers import expected_layers
from diffopt.quantization.observer import observed
from diffopt.quantization.step_extremes import StepExtremes, reduce

METHODS = ["default", "global_min", "min-max", "min-mean", "mean-max"]
STEPS, BATCHES = 5, 3


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        cross_attention_dim=16,
        norm_num_groups=4,
    ).eval()


Event = Callable[[], None]


def run(model: torch.nn.Module, batches: range, on_step: Event, on_batch: Event = lambda: None) -> None:
    """What a guided pipeline does that calls its backbone for either prediction: two calls a step."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(STEPS)
    for batch in batches:
        on_batch()
        draw = torch.Generator().manual_seed(batch)
        x = torch.randn(2, 4, 8, 8, generator=draw) * (1 + batch)
        texts = [torch.randn(2, 7, 16, generator=draw) * (1 + 9 * i) for i in range(2)]
        for t in scheduler.timesteps:
            without, guided = (model(x, t, encoder_hidden_states=text).sample for text in texts)
            x = scheduler.step(without + 3 * (guided - without), t, x).prev_sample
            on_step()


def plain(unet: torch.nn.Module, name: str, percentile: float, method: str) -> torch.nn.Module:
    model, chosen = copy.deepcopy(unet), formats.method(name)
    rules = chosen.rules(["conv_in", "conv_out", "time_embedding"], [], False, convolutions=True)
    for rule in rules:
        if rule.get("parent_class") == "nn.Conv2d" and rule["quantizer_name"] == "*input_quantizer":
            rule["cfg"] = rule["cfg"] | {"calibrator": (StepCalibrator, (counted(STEPS, percentile), method))}

    def loop(m: torch.nn.Module) -> None:
        Counter.batch = -1
        run(m, range(BATCHES), Counter.next_step, Counter.next_batch)

    with torch.no_grad():
        mtq.quantize(model, {"quant_cfg": rules, "algorithm": chosen.calibration(0.5)}, loop)
    return model


@pytest.fixture(scope="module")
def observations(unet: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Extremes and step extremes, in two chunks of two batches and one."""
    chunks = []
    for batches in (range(2), range(2, BATCHES)):
        model, steps = copy.deepcopy(unet), StepExtremes()
        with observed(model, steps) as found, torch.no_grad():
            run(model, batches, steps.end)
        chunks.append((found, steps.table(len(batches))))
    return extremes.merge([found for found, _ in chunks]), step_extremes.merge([table for _, table in chunks])


CASES = [("int8", share, method) for share in (1.0, 0.6) for method in METHODS] + [("int8_sq", 0.6, "min-mean")]

FEW = [("int8_sq", 0.6, "min-mean")]


@pytest.mark.parametrize(("name", "percentile", "method"), some(CASES, FEW))
def test_the_quantized_model_is_that_of_a_calibrator_in_the_loop(
    name: str, percentile: float, method: Any, unet: torch.nn.Module, observations: Any
) -> None:
    found, tables = observations
    found = found | {n: reduce(t, percentile, method).to(found[n].dtype) for n, t in tables.items()}
    chosen, ours = formats.method(name), copy.deepcopy(unet)
    rules = chosen.rules(["conv_in", "conv_out", "time_embedding"], [], False, convolutions=True)
    checkpoint.quantize(ours, rules, chosen.calibration(0.5), found)
    checkpoint.check(ours, expected_layers(unet, ["conv_in", "conv_out", "time_embedding"], convolutions=True))
    assert differing(ours, plain(unet, name, percentile, method)) == []


def test_the_five_methods_and_a_part_of_the_steps_give_different_scales(observations: Any) -> None:
    table = observations[1]["down_blocks.1.resnets.0.conv1.input_quantizer"]
    scales = {float(reduce(table, percentile, method)) for percentile in (1.0, 0.6) for method in METHODS}  # type: ignore[arg-type]
    assert len(scales) >= 8


def test_a_table_has_by_step_the_largest_the_smallest_the_sum_and_the_number_of_the_batches_maxima() -> None:
    steps = StepExtremes()
    for peaks in ([1.0, 5.0], [2.0], [3.0], [7.0, 4.0]):  # two steps of two batches; one and two calls a step
        for peak in peaks:
            steps.see("conv", torch.tensor([peak, 0.5]))
        steps.end()
    assert steps.table(2)["conv"].tolist() == [[5, 7], [3, 2], [8, 9], [2, 2]]


def test_batches_of_different_steps_are_refused() -> None:
    steps = StepExtremes()
    for _ in range(3):
        steps.see("conv", torch.ones(1))
        steps.end()
    with pytest.raises(ValueError, match="3 denoising steps of 2 batches"):
        steps.table(2)


def test_chunks_of_different_step_counts_do_not_merge() -> None:
    with pytest.raises(ValueError, match="numbers of denoising steps"):
        step_extremes.merge([{"conv": torch.ones(4, 3)}, {"conv": torch.ones(4, 2)}])


def test_nan_is_kept() -> None:
    steps = StepExtremes()
    for peak in (1.0, torch.nan, 2.0, 3.0):
        steps.see("conv", torch.tensor([peak]))
        steps.end()
    table = steps.table(2)["conv"]
    assert reduce(table, 1.0, "default").isnan()
    assert not reduce(table, 0.5, "default").isnan()


@pytest.mark.parametrize(
    ("steps", "share", "many"), [(20, 1.0, 20), (20, 0.35, 7), (100, 0.29, 29), (20, 0.99, 19), (4, 0.2, 0)]
)
def test_a_share_of_the_steps_is_rounded_down(steps: int, share: float, many: int) -> None:
    assert counted(steps, share) == many


# Only where it has an effect.


def calib(**changes: Any) -> Calib:
    values = {"prompts": PromptSet("x", ("a",) * 4), "size": 4, "batch_size": 2, "chunk": 2, "n_steps": 4, "alpha": 0.5}
    return Calib(**values | changes)


def choices(name: str, **changes: Any) -> Any:
    return SimpleNamespace(
        format=SimpleNamespace(name=name, inputs="max"), model=SimpleNamespace(family="flux"), calib=calib(**changes)
    )


@pytest.fixture
def with_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLUX, if it had convolutions."""
    family = SimpleNamespace(**vars(models.family("flux")) | {"convolutions": True})
    monkeypatch.setattr(models, "family", lambda _: family)


@pytest.mark.usefixtures("with_convolutions")
@pytest.mark.parametrize("changes", [{"percentile": 0.5}, {"collect_method": "min-mean"}])
def test_steps_are_kept_apart_for_int8_when_they_are_asked_for(changes: dict[str, Any]) -> None:
    for name, kept in (("int8", True), ("int8_sq", True), ("fp8", False), ("nvfp4", False), ("int4_awq", False)):
        assert [v.per_step for v in ChunkView.split(calib(**changes), choices(name, **changes))] == [kept] * 2
        assert ({"percentile", "collect_method"} <= ScaleView.used(choices(name))) is kept
    assert [v.per_step for v in ChunkView.split(calib(), choices("int8"))] == [False] * 2


def test_a_family_without_convolutions_does_not_read_the_steps() -> None:
    asked = choices("int8", percentile=0.5)
    assert not any(v.per_step for v in ChunkView.split(asked.calib, asked))
    assert not {"percentile", "collect_method"} & ScaleView.used(asked)


@pytest.mark.usefixtures("with_convolutions")
def test_other_shares_and_methods_share_the_observed_chunks() -> None:
    def identities(**changes: Any) -> list[Any]:
        return [v.identity(frozenset()) for v in ChunkView.split(calib(**changes), choices("int8", **changes))]

    assert identities(percentile=0.5) == identities(percentile=0.75, collect_method="mean-max")
    assert identities(percentile=0.5) != identities()


def test_a_share_that_leaves_no_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"percentile: leaves none of the calib\.n_steps=4"):
        calib(percentile=0.2)


def test_extremes_of_convolution_inputs_are_per_channel(unet: torch.nn.Module, observations: Any) -> None:
    named = dict(unet.named_modules())
    convolutions = [n for n, m in named.items() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) > 10
    assert all(observations[0][f"{n}.input_quantizer"].shape == (named[n].in_channels,) for n in convolutions)
    assert {n.removesuffix(".input_quantizer") for n in observations[1]} == set(convolutions)


def test_a_transformer_has_none(unet: torch.nn.Module) -> None:
    steps, model = StepExtremes(), bench().backbone()
    with observed(model, steps), torch.no_grad():
        model(**bench().inputs())
    steps.end()
    assert steps.table(1) == {}
    assert not any(q.is_enabled for _, q in quantizers(model))


def test_a_choice_of_ranges_that_a_format_has_not_changes_nothing(plan: Any) -> None:
    """In a sweep over formats, of which others have it."""

    def made(*more: str) -> str:
        picks = ("model=emoji_sdxl", "format=int8_sq", "calib=emoji", "eval=emoji", "calib.percentile=0.5", *more)
        return next(s.fingerprint for s in plan(*picks, sweep=True).steps if s.name == "quantize")

    assert made("format.inputs=percentile") == made()
    assert made("calib.percentile=0.7") != made()
