"""Ranges of inputs that are not those of their largest are modelopt's own, of one calibration, whatever job counted what."""

from functools import cache
from typing import Any

import modelopt.torch.quantization as mtq
import pytest
import torch
from conftest import some
from safetensors.torch import load_file
from test_calibrate_once import differing, pipeline_loop
from tiny import Bench, bench, recipe

from diffopt.errors import ConfigError, GateError, PlanError
from diffopt.formats import method
from diffopt.formats.method import Inputs
from diffopt.pipeline.open import open_pipeline
from diffopt.quantization import checkpoint, histogram
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.companions import HISTOGRAMS
from diffopt.quantization.histogram import BLOCKS, NUMBERS, counted, numbers
from diffopt.quantization.input_ranges import ranged
from diffopt.quantization.range_counter import counted as counting

SIZE = 7
E4M3 = (4, 3)
MLP = "transformer_blocks.0.ff.net.2"
WITHIN = 99.0


def restored(b: Bench, name: str, inputs: Inputs, **kw: Any) -> Any:
    return checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name, inputs=inputs, size=SIZE, **kw))


def ranges(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: model.get_submodule(n).input_quantizer.amax for n in checkpoint.quantized_layers(model)}


@cache
def entered(layer: str = MLP) -> torch.Tensor:
    """All that calibration shows a layer, in full precision."""
    b, seen = bench(), []
    pipe = open_pipeline(b.context(), b.pipeline())
    pipe.transformer.get_submodule(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with torch.inference_mode():
        pipeline_loop(b, pipe, SIZE)(pipe.transformer)
    return torch.cat(seen)


@pytest.mark.parametrize("dtype", some(["float32", "bfloat16"], ["bfloat16"]))
def test_headroom_gives_every_tensor_of_modelopts_own_loop(dtype: str) -> None:
    b = bench(dtype)
    pipe, (rules, _) = open_pipeline(b.context(), b.pipeline()), recipe("nvfp4")
    with torch.no_grad(), simulated():
        algorithm = {"method": "nvfp4_act_headroom"}
        mtq.quantize(pipe.transformer, {"quant_cfg": rules, "algorithm": algorithm}, pipeline_loop(b, pipe, SIZE))
    ours = restored(b, "nvfp4", "headroom")
    assert differing(ours, pipe.transformer) == []
    largest = ranges(restored(b, "nvfp4", "max"))
    assert all(found > largest[name] for name, found in ranges(ours).items())


@pytest.mark.parametrize("name", some(["int8", "fp8"], ["fp8"]))
def test_a_percentile_is_that_of_modelopts_calibrator_to_the_width_of_a_bin(name: str) -> None:
    """modelopt's bins are as wide as its first batch says, and its `mtq.quantize` cannot take them: it is led by hand."""
    b = bench()
    pipe, (rules, _) = open_pipeline(b.context(), b.pipeline()), recipe(name)
    shown = [r | {"cfg": r["cfg"] | {"calibrator": "histogram"}} if "input" in r["quantizer_name"] else r for r in rules]
    mtq.quantize(pipe.transformer, {"quant_cfg": shown, "algorithm": None})
    mtq.model_calib.enable_stats_collection(pipe.transformer)
    with torch.inference_mode():
        pipeline_loop(b, pipe, SIZE)(pipe.transformer)
    ours = ranges(restored(b, name, "percentile", within=WITHIN))
    for layer, found in ours.items():
        calibrator = pipe.transformer.get_submodule(layer).input_quantizer._calibrator
        theirs = float(calibrator.compute_amax("percentile", percentile=WITHIN))
        assert abs(float(found) - theirs) <= float(calibrator._calib_bin_edges[1]) + theirs * 2**-8, layer
        assert float(found) < float(ranges(restored(b, name, "max"))[layer]), layer


def test_a_percentile_has_its_share_of_the_numbers_within() -> None:
    amax = float(ranges(restored(bench("bfloat16"), "fp8", "percentile", within=WITHIN))[MLP])
    (counts,) = (x for n, x in merged(bench("bfloat16")).items() if n == f"{MLP}.input_quantizer")
    there = numbers()
    assert counts[there < amax].sum() / counts.sum() < WITHIN / 100 <= counts[there <= amax].sum() / counts.sum()


def merged(b: Bench) -> dict[str, torch.Tensor]:
    return histogram.merge([load_file(h.path / HISTOGRAMS) for h in b.histograms(SIZE)])


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_the_least_error_is_that_of_the_inputs_themselves(name: str) -> None:
    """Found among binned numbers, it is as good as any range that is tried on the inputs."""
    model = restored(bench(), name, "mse")
    quantizer, x = model.get_submodule(MLP).input_quantizer, entered()

    def error(amax: torch.Tensor) -> float:
        quantizer.amax = amax
        with torch.no_grad():
            return float((quantizer(x) - x).double().square().mean())

    found = quantizer.amax.clone()
    tried = {float(share): error(x.abs().max() * share) for share in torch.linspace(0.05, 1, 200)}
    assert error(found) <= 1.01 * min(tried.values())
    assert error(found) < 0.98 * tried[1.0]


def test_ranges_are_no_larger_than_what_was_seen() -> None:
    largest = ranges(restored(bench(), "int8", "max"))
    for inputs in ("percentile", "mse"):
        assert all(found <= largest[n] for n, found in ranges(restored(bench(), "int8", inputs)).items())


def test_convolutions_have_ranges_too() -> None:
    b = bench(family="sd21")
    named = [n for n, m in b.backbone().named_modules() if isinstance(m, torch.nn.Conv2d)]
    found, largest = (ranges(restored(b, "int8", inputs, within=WITHIN)) for inputs in ("percentile", "max"))
    there = [n for n in named if n in found]
    assert there
    assert all(found[n] < largest[n] for n in there)


def test_what_is_beyond_a_range_is_counted() -> None:
    share = {}
    for inputs in ("max", "percentile"):
        model = restored(bench(), "fp8", inputs, within=WITHIN)
        with counting({"": model}) as found, torch.no_grad():
            model.get_submodule(MLP)(entered())
        (one,) = found()
        share[inputs] = one.beyond / one.values
    assert share["max"] == 0
    assert 0 < share["percentile"] < 1 - WITHIN / 100


# Of one calibration.


def test_chunks_in_any_order_have_the_counts_of_one_pass() -> None:
    b = bench()
    parts = [load_file(h.path / HISTOGRAMS) for h in b.histograms(SIZE)]
    ours, turned = histogram.merge(parts), histogram.merge(parts[::-1])
    x = entered()
    assert torch.equal(ours[f"{MLP}.input_quantizer"], histogram.sizes(x))
    assert torch.equal(ours[f"{MLP}.input_quantizer{BLOCKS}"], histogram.maxima(x))
    assert all(torch.equal(turned[n], ours[n]) for n in ours)
    with pytest.raises(ValueError, match="different layers"):
        histogram.merge([parts[0], {"other.input_quantizer": torch.ones(2, dtype=torch.int64)}])


def test_a_count_tells_zero_from_the_smallest_and_the_largest() -> None:
    x = torch.tensor([0.0, 2.0**-30, 1.0, -1.0, 1.001, 1.0078125, 2.0**30])
    counts, there = histogram.sizes(x), numbers()
    assert counts.sum() == len(x)
    assert {float(there[i]): int(counts[i]) for i in counts.nonzero()} == {
        2.0**-20: 2,
        1.0: 3,
        1.0078125: 1,
        float(there[-1]): 1,
    }
    assert histogram.maxima(torch.zeros(3, 16)).sum() == 0
    assert int(histogram.maxima(torch.ones(2, 20)).sum()) == 4  # padded to two blocks


def test_counting_leaves_the_output_in_full_precision() -> None:
    b = bench()
    with torch.no_grad():
        plain = b.backbone()(**b.inputs(), return_dict=False)[0]
        model = b.backbone()
        with counted(model) as found:
            assert torch.equal(model(**b.inputs(), return_dict=False)[0], plain)
    assert {n.removesuffix(BLOCKS) for n in found} == {
        f"{n}.input_quantizer" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)
    }
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_inputs_without_end_are_refused_before_a_range_hides_them() -> None:
    counts = {"a.input_quantizer": torch.ones(NUMBERS, dtype=torch.int64)}
    with pytest.raises(GateError, match=r"a\.input_quantizer saw inf"):
        ranged({"a.input_quantizer": torch.tensor([1.0, torch.inf])}, counts, ["a"], "percentile", method("int8"), 99.9)


# In the plan.

EMOJI = "model=emoji_flux"


def made(plan: Any, *given: str) -> dict[str, str]:
    return {s.name: s.fingerprint for s in plan(EMOJI, "calib=emoji", *given).steps}


def test_a_sweep_over_ranges_shares_all_that_is_observed(plan: Any) -> None:
    kinds = ("format=fp8", "format=fp8 mse", "format=fp8 percentile", "format=int8 mse", "format=nvfp4 headroom")
    plans = []
    for kind in kinds:
        format, *inputs = kind.split()
        plans.append(made(plan, format, *(f"format.inputs={x}" for x in inputs)))
    assert not [n for n in plans[0] if n.startswith("count")]
    assert [n for n in plans[1] if n.startswith("count")] == ["count.0", "count.1"]
    for other in plans[1:]:
        assert {n: f for n, f in other.items() if n.startswith("count")} == {
            n: f for n, f in plans[1].items() if n.startswith("count")
        }
        assert all(other[n] == f for n, f in plans[0].items() if n != "quantize")
    assert len({p["quantize"] for p in plans}) == len(kinds)


def test_a_percentile_has_a_key_of_its_own_and_the_largest_the_one_it_had(plan: Any) -> None:
    plain, said, mse = (made(plan, "format=fp8", *x)["quantize"] for x in ((), ("format.inputs=max",), ("format.inputs=mse",)))
    some_, more = (
        made(plan, "format=fp8", "format.inputs=percentile", f"format.input_percentile={x}")["quantize"] for x in (99.9, 99.99)
    )
    assert plain == said
    assert len({plain, mse, some_, more}) == 4


REASONS = {
    "int4_awq": "its inputs are not quantized",
    "int8_sq": "its inputs are scaled by channel before",
    "w4a8_awq": "its inputs are scaled by channel before",
    "nvfp4_svdquant": "its inputs are scaled by channel before",
    "auto": "its formats are measured by the largest",
}


@pytest.mark.parametrize("name", REASONS)
def test_a_format_without_ranges_of_its_own_says_why(plan: Any, name: str) -> None:
    sense = ["sense=default"] if name == "auto" else []
    with pytest.raises((ConfigError, PlanError), match=rf"format\.inputs: .*{REASONS[name]}"):
        plan(EMOJI, "calib=emoji", f"format={name}", "format.inputs=percentile", *sense)


def test_mxfp8_finds_its_scales_as_inputs_pass(plan: Any) -> None:
    with pytest.raises((ConfigError, PlanError), match="the scales of its inputs are found as they pass"):
        plan(EMOJI, "format=mxfp8", "format.inputs=mse")


@pytest.mark.parametrize(("name", "inputs"), [("fp8", "headroom"), ("fp8", "full"), ("nvfp4", "mse"), ("nvfp4", "percentile")])
def test_a_range_that_a_format_does_not_have_is_refused(plan: Any, name: str, inputs: str) -> None:
    with pytest.raises(ConfigError, match=rf"format\.inputs: {name} has max, .*\(got {inputs}\)"):
        plan(EMOJI, "calib=emoji", f"format={name}", f"format.inputs={inputs}")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (("model=sd21", "format=int8", "format.inputs=mse", "calib.percentile=0.5"), "calib.percentile"),
        ((EMOJI, "format=fp8", "format.input_percentile=99"), "format.input_percentile"),
    ],
)
def test_a_field_that_a_range_does_not_read_is_refused(plan: Any, given: tuple[str, ...], field: str) -> None:
    with pytest.raises((ConfigError, PlanError), match=rf"{field}: has no effect"):
        plan("calib=emoji", *given)
