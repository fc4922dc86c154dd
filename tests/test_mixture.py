"""`format=auto`: a format for every layer, the least summed error within the budget, and a checkpoint like any other."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from contents import MIX
from safetensors.torch import load_file
from test_sensitivity import ALPHA, measure, measured, tried
from tiny import CHUNK, bench, call, emoji, folder

from diffopt import formats
from diffopt.artifact import Checkpoint, Mix, OnnxGraph
from diffopt.cli.modelopt_file import portable
from diffopt.errors import ConfigError, PlanError
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.mix import MixedLayer, MixFile
from diffopt.files.sensitivity import SensitivityFile
from diffopt.groups import FormatView, ScaleView, gpu_rates
from diffopt.groups.format import Budget, MixView
from diffopt.groups.validate import choose
from diffopt.machine import environment
from diffopt.pipeline.open import open_pipeline
from diffopt.quantization import checkpoint, mixed_precision, scheme
from diffopt.quantization.extremes import quantizers
from diffopt.quantization.mixed_precision import Limit, Option
from diffopt.race import costs
from diffopt.stages.build import BuilderView, build
from diffopt.stages.export import GraphView, SizeView, export
from diffopt.stages.mix import mix
from diffopt.stages.quantize import quantize

CANDIDATES = ("nvfp4", "fp8", "int8_sq", "mxfp8")


@cache
def mixed(candidates: tuple[str, ...] = CANDIDATES, exclude: tuple[str, ...] = (), **budget: Any) -> Mix:
    ctx = bench(family="flux").context()
    view = MixView(candidates=list(candidates), budget=Budget(**budget), exclude=list(exclude))
    mix.run(ctx, view, bench(family="flux").pipeline(), measured())
    return Mix(ctx.out, "mix")


@cache
def searched(*candidates: str, **budget: Any) -> Mix:
    """The same where its layers in NVFP4 have the scales of local Hessians, measured so."""
    ctx = bench(family="flux").context()
    view = MixView(candidates=list(candidates), budget=Budget(**budget), exclude=[], weights="local_hessian")
    mix.run(ctx, view, bench(family="flux").pipeline(), tried())
    return Mix(ctx.out, "mix")


def rows_of(family: str = "flux") -> list[dict[str, Any]]:
    """Name, kind and weights of every layer that a format quantizes."""
    b = bench(family=family)
    head = b.checkpoint("int8_sq", alpha=ALPHA).json(CheckpointFile.NAME)
    kinds = {x["name"]: x["kind"] for x in b.pipeline().json("layers.json")}
    return [{"name": n, "kind": kinds[n], "weights": 1} for n in head["layers"]]


def formats_of(content: Mix) -> dict[str, str]:
    return {x["name"]: x["format"] for x in content.json("mix.json")["layers"]}


def test_a_mix_is_chosen_by_the_scales_that_its_layers_will_have() -> None:
    rows = {x.name: x for x in SensitivityFile.read(tried().path).layers}
    found, plain = (MixFile.read(m.path) for m in (searched("nvfp4", "int8", bits=6.0), mixed(("nvfp4", "int8"), bits=6.0)))
    for layer in found.layers:
        name = "nvfp4 weights=local_hessian" if layer.format == "nvfp4" else layer.format
        assert layer.error == mixed_precision.relative(rows[layer.name], name)
    assert {x.format for x in found.layers} == {"nvfp4", "int8"}
    assert found.error < plain.error
    assert found.uniform["nvfp4"].error < plain.uniform["nvfp4"].error
    assert found.uniform["int8"].error == plain.uniform["int8"].error


def test_layers_of_which_the_scales_were_not_tried_count_as_those_of_maxima() -> None:
    """As ragged ones, whose scales stay so."""
    (row, *_) = SensitivityFile.read(measured().path).layers
    view = MixView(candidates=["nvfp4", "int8"], budget=Budget(bits=8.0), exclude=[], weights="mse")
    (found, _) = mixed_precision.options(row, view, 32.0)
    assert found.error == mixed_precision.relative(row, "nvfp4")


def test_scales_that_no_candidate_has_a_choice_of_are_refused(plan: Any) -> None:
    given = ("export=null", "format.candidates=[fp8,int8_sq]", "format.budget.bits=8", "format.weights=mse")
    with pytest.raises(PlanError, match=r"format\.weights: has no effect .*auto with nvfp4"):
        plan("+recipe=emoji_auto", *given)


def test_a_race_takes_the_damage_of_the_scales_that_a_setting_has(config: Any) -> None:
    found = SensitivityFile.read(tried().path)
    given = {
        kind: config("model=emoji_flux", "format=nvfp4", "calib=emoji", f"format.weights={kind}") for kind in ("max", "mse")
    }
    sums = {kind: costs.damage(choose(x), found) for kind, x in given.items()}
    for kind, name in (("max", "nvfp4"), ("mse", "nvfp4 weights=mse")):
        assert sums[kind] == pytest.approx(sum(mixed_precision.relative(x, name) for x in found.layers))
    assert sums["mse"] < sums["max"]


def test_what_the_mix_asks_for_is_tried_and_no_more(plan: Any) -> None:
    def made(*given: str) -> Any:
        return {s.name: s for s in plan("+recipe=emoji_auto", "export=null", *given).steps}

    own, maxima, none = made(), made("format.weights=max"), made("format.candidates=[fp8,int8_sq]", "format.budget.bits=8")
    assert own["sense"].views["sense"].options == ["weights=local_hessian"]
    assert made("sense.options=[weights]")["sense"].views["sense"].options == ["weights"]
    assert {*own} - {*maxima} == {n for n in own if n.startswith("correlate")} != set()
    for found in (maxima, none):
        assert found["sense"].views["sense"].options == []
    before = {"sense": "4404dae057757c1a", "mix": "3254f74ee2e4ee73", "quantize": "a2548ae8b159a134"}
    assert {n: maxima[n].fingerprint for n in before} == before  # as while there was no such choice
    assert len({x["mix"].fingerprint for x in (own, maxima, made("format.weights=mse"))}) == 3


# The choice.


def random_options(seed: int, layers: int = 6) -> list[list[Option]]:
    draw = np.random.default_rng(seed)
    names = ("nvfp4", "fp8", "int8_sq")
    return [[Option(n, *map(float, draw.uniform(0.1, 1, 3) * [1e-3, 100, 10])) for n in names] for _ in range(layers)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_no_other_mix_within_the_budget_has_a_smaller_error(seed: int, share: float) -> None:
    layers = random_options(seed)
    budget = []
    for field, cost in (("bits", "bits"), ("time", "time")):
        ends = [sum(end(getattr(o, cost) for o in x) for x in layers) for end in (min, max)]
        budget.append(Limit(field, cost, ends[0] + share * (ends[1] - ends[0]), 1))

    def fits(options: Any) -> bool:
        return all(sum(getattr(o, x.cost) for o in options) <= x.most for x in budget)

    best = min((m for m in itertools.product(*layers) if fits(m)), key=lambda m: sum(o.error for o in m))
    found = mixed_precision.choose(layers, budget)
    assert fits(found)
    assert sum(o.error for o in found) <= sum(o.error for o in best) * (1 + 2 * mixed_precision.GAP)


def test_a_budget_that_is_just_what_a_format_takes_is_enough() -> None:
    layers = [[Option("fp8", 1.0, 8 * n, n), Option("full", 0.0, 16 * n, n)] for n in (3.0, 70_001.0, 123_456_789.0)]
    total = sum(x[0].bits for x in layers)
    assert [o.format for o in mixed_precision.choose(layers, [Limit("bits", "bits", total, 1)])] == ["fp8"] * 3


def test_a_budget_that_nothing_keeps_is_refused_with_the_least_there_is() -> None:
    with pytest.raises(PlanError, match=r"^format\.budget\.bits: .* the least is 4\.5 \(got 4\.2\); raise it"):
        mixed(bits=4.2)


@pytest.mark.parametrize("bits", [4.6, 5.5, 7.0, 8.0])
def test_the_budget_is_kept_and_no_uniform_format_within_it_has_a_smaller_error(bits: float) -> None:
    content = mixed(bits=bits).json("mix.json")
    taken = sum(x["weights"] * formats.method(x["format"]).weight_bits for x in content["layers"])
    assert taken <= bits * sum(x["weights"] for x in content["layers"])
    within = [u for u in content["uniform"].values() if u["fits"]]
    assert within
    assert all(content["error"] <= u["error"] for u in within)
    assert content["error"] < content["uniform"]["nvfp4"]["error"]


def test_a_larger_budget_never_gives_a_larger_error() -> None:
    errors = [mixed(bits=b).json("mix.json")["error"] for b in (4.6, 5.5, 7.0, 8.0)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]


def test_a_share_of_the_bytes_is_of_the_models_precision() -> None:
    content = mixed(bytes="20%").json("mix.json")
    assert content["bytes"] <= 0.2 * content["plain_bytes"]
    assert content["plain_bytes"] == 4 * sum(x["weights"] for x in content["layers"])
    assert (
        formats_of(mixed(bytes="20%"))
        == formats_of(mixed(bits=6.4))
        == formats_of(mixed(bytes=int(content["plain_bytes"] / 5)))
    )


def test_a_share_of_the_time_is_estimated_from_the_data_sheet() -> None:
    content = mixed(("nvfp4", "fp8", "full"), time="40%", gpu="b200").json("mix.json")
    rows = {x["name"]: x for x in measured().json("sensitivity.json")["layers"]}
    whole = sum(x["products"] for x in rows.values())
    taken = sum(rows[x["name"]]["products"] * gpu_rates.share("b200", x["format"]) for x in content["layers"])
    assert content["time"] == pytest.approx(taken / whole)
    assert content["time"] <= 0.4
    assert gpu_rates.share("b200", "nvfp4") == 0.25


def test_layers_that_are_excluded_are_not_in_the_mix() -> None:
    names = formats_of(mixed(exclude=("transformer_blocks.0",), bits=6.0))
    assert names
    assert not [n for n in names if n.startswith("transformer_blocks.0.")]


def test_a_candidate_may_be_to_leave_a_layer_as_it_is() -> None:
    names = formats_of(mixed(("nvfp4", "full"), bits=16.0))
    assert {*names.values()} == {"nvfp4", "full"}


def test_the_nvfp4_layers_of_a_mix_have_the_scales_that_are_searched_for_them_alone() -> None:
    b, ctx = bench(family="flux"), bench(family="flux").context()
    chosen = FormatView(name="auto", exclude=[], quantize_mha=False, weights="local_hessian")
    mix = in_turn(("nvfp4", "fp8"))
    quantize.run(ctx, chosen, ScaleView(alpha=ALPHA), b.pipeline(), b.stats(CHUNK), (), mix, b.hessians(CHUNK))
    whole = checkpoint.restore(b.context(), b.pipeline(), Checkpoint(ctx.out, "checkpoint"))
    alone = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("nvfp4", weights="local_hessian"))
    assert {*formats_of(mix).values()} == {"nvfp4", "fp8"}
    for name, kind in formats_of(mix).items():
        ours, theirs = (m.get_submodule(name).weight_quantizer for m in (whole, alone))
        assert (kind == "nvfp4") == torch.equal(ours.amax, theirs.amax), name


# The checkpoint.


@cache
def in_turn(names: tuple[str, ...], family: str = "flux") -> Mix:
    """A mix by hand: the layers take these formats one after the other, a convolution the first that quantizes it."""
    ctx, rows = bench(family=family).context(), rows_of(family)
    layers: list[MixedLayer] = []
    for i, row in enumerate(rows):
        name = names[i % len(names)]
        if row["kind"] == "convolution":
            name = next(n for n in names if formats.method(n).convolution)
        layers.append(MixedLayer(row["name"], row["kind"], name, 1, 0.0))
    replace(MixFile.of(MIX), layers=tuple(layers), bits=6.5).write(ctx.out)
    return Mix(ctx.out, "mix")


@cache
def made(names: tuple[str, ...], family: str = "flux") -> Checkpoint:
    b = bench(family=family)
    ctx, chosen = b.context(), FormatView(name="auto", exclude=[], quantize_mha=False)
    quantize.run(ctx, chosen, ScaleView(alpha=ALPHA), b.pipeline(), b.stats(CHUNK), (), in_turn(names, family))
    return Checkpoint(ctx.out, "checkpoint")


@cache
def restored(*names: str) -> torch.nn.Module:
    return checkpoint.restore(bench(family="flux").context(), bench(family="flux").pipeline(), made(names))


def test_every_layer_is_to_the_bit_what_it_is_in_its_format_alone() -> None:
    b, model = bench(family="flux"), restored(*CANDIDATES)
    for name in CANDIDATES:
        alone = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name, alpha=ALPHA))
        layers = [n for n, f in formats_of(in_turn(CANDIDATES)).items() if f == name]
        assert layers
        for layer in layers:
            ours, theirs = model.get_submodule(layer).state_dict(), alone.get_submodule(layer).state_dict()
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[k], theirs[k]) for k in ours)
        there = {n: q for n, q in quantizers(model) if n.rpartition(".")[0] in layers}
        for n, quantizer in quantizers(alone):
            if n.rpartition(".")[0] in layers:
                for attribute in ("is_enabled", "num_bits", "axis", "block_sizes"):
                    assert getattr(there[n], attribute) == getattr(quantizer, attribute), (n, attribute)


def test_the_checkpoint_says_what_each_layer_is() -> None:
    head = made(CANDIDATES).json(CheckpointFile.NAME)
    assert (head["format"], head["weight_bits"]) == ("auto", 6.5)
    assert head["mix"] == formats_of(in_turn(CANDIDATES))
    assert set(head["layers"]) == set(head["mix"])


def test_plain_modelopt_restores_a_mix_to_the_bit() -> None:
    import modelopt.torch.opt as mto

    b, path = bench(family="flux"), folder() / "mix.pt"
    ours = call(restored(*CANDIDATES), b.inputs())
    portable(restored(*CANDIDATES), path)
    theirs = b.backbone()
    mto.restore(theirs, path)
    assert torch.equal(call(theirs, b.inputs()), ours)
    assert not torch.equal(call(b.backbone(), b.inputs()), ours)


def test_a_mix_of_one_format_is_that_format() -> None:
    b = bench(family="flux")
    alone = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("int8_sq", alpha=ALPHA))
    assert torch.equal(call(restored("int8_sq"), b.inputs()), call(alone, b.inputs()))


def test_a_layer_that_is_left_as_it_is_is_in_no_checkpoint() -> None:
    names = formats_of(in_turn(("fp8", "full")))
    head = made(("fp8", "full")).json(CheckpointFile.NAME)
    assert set(head["layers"]) == {n for n, f in names.items() if f == "fp8"} < set(names)


@pytest.mark.matrix
def test_convolutions_beside_smoothed_layers_are_calibrated_on_plain_maxima() -> None:
    b = bench(family="sd21")
    model = checkpoint.restore(b.context(), b.pipeline(), made(("int8_sq", "nvfp4"), "sd21"))
    alone = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("int8_sq", alpha=ALPHA))
    convolutions = [x["name"] for x in rows_of("sd21") if x["kind"] == "convolution"]
    assert convolutions
    for name in convolutions:
        ours, theirs = model.get_submodule(name).state_dict(), alone.get_submodule(name).state_dict()
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


# The graph and the plan.


THREE = ("nvfp4", "fp8", "int8_sq")


@cache
def graph() -> OnnxGraph:
    b = bench(family="flux")
    ctx, size = b.context(), SizeView(**{n: getattr(b.call, n) for n in SizeView.model_fields})
    view = GraphView(opset=20, batch_size=1, max_batch_size=None, high_precision_dtype="float16")
    export.run(ctx, size, view, b.pipeline(), made(THREE))
    return OnnxGraph(ctx.out, "graph")


def test_the_graph_stores_every_weight_in_its_layers_format() -> None:
    counted = [*formats_of(in_turn(THREE)).values()]
    kinds = {"int8_sq": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN, "nvfp4": onnx.TensorProto.FLOAT4E2M1}
    stored = onnx.load(graph().path / "model.onnx").graph.initializer
    for name, kind in kinds.items():
        matrices = [i for i in stored if len(i.dims) == 2 and i.data_type == kind and not i.name.endswith("block_scale")]
        assert len(matrices) == counted.count(name) > 0
    head = graph().json("graph.json")
    assert head["quantized_products"] == head["quantized_layers"] == len(counted)


@pytest.mark.matrix
@pytest.mark.skipif(environment.tensorrt() is None, reason="no engine builder is installed")
def test_a_plan_is_built_of_a_mix() -> None:
    ctx = bench(family="flux").context()
    build.run(ctx, BuilderView(builder_optimization_level=0), graph())
    assert json.loads((ctx.out / "plan.json").read_text())["format"] == "auto"
    assert (ctx.out / "model.plan").stat().st_size > 100_000


# What is refused.


AUTO = ("model=emoji_flux", "format=auto", "calib=emoji", "sense=default")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["format.candidates=[fp8,int4_awq]"], r"format\.candidates: int4_awq is found by a search .*\(got .*\); choose of"),
        (["format.candidates=[full]"], r"format\.candidates: names no format .*\(got \['full'\]\); give two"),
        (["format.budget.bits=null"], r"format\.budget: sets no limit \(got .*\); give format\.budget\.bits"),
        (["format.budget.time=50%"], r"format\.budget: time and gpu go together \(got .*\); give both"),
        (["format.budget.bytes=much"], r"format\.budget\.bytes: is not a share \(got 'much'\); give a percentage"),
        (["format.budget.bytes=0"], r"format\.budget\.bytes: is not a size \(got 0\); give a number"),
        (["+format.budget.bit=3"], r"format\.budget\.bit: no such key \(got 3\); did you mean bits\?"),
    ],
)
def test_a_wrong_budget_or_candidate_is_one_line(overrides: list[str], line: str, config: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{line}[^\n]*$"):
        choose(config(*AUTO, *overrides))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["~sense"], r"quantize: needs a mix|mix: needs a sensitivity .* choose sense=OPTION"),
        (["sense.formats=[fp8,nvfp4]"], r"format\.candidates: int8_sq is not tried by sense\.formats"),
        (["format.budget.time=50%", "format.budget.gpu=h100"], r"format\.candidates: the tensor cores of h100 have no nvfp4"),
        (["+format.quantize_mha=true"], r"format\.quantize_mha: auto has no quantized attention"),
        (["export=onnx"], r"export\.high_precision_dtype: nvfp4 does not export from float32"),
    ],
)
def test_what_a_mix_lacks_is_said_before_anything_runs(overrides: list[str], line: str, plan: Any) -> None:
    with pytest.raises(PlanError, match=line):
        plan(*AUTO, *overrides)


def test_a_budget_under_another_format_is_refused(plan: Any) -> None:
    with pytest.raises(PlanError, match=r"format\.budget\.bits: has no effect under format=fp8, since format=auto alone reads"):
        plan("model=emoji_flux", "format=fp8", "calib=emoji", "+format.budget.bits=5")


def test_a_field_of_the_budget_changes_the_mix_and_not_the_measurement(plan: Any) -> None:
    one, other = ({s.name: s.fingerprint for s in plan(*AUTO, *o, sweep=True).steps} for o in ([], ["format.budget.bits=5"]))
    assert {n for n in one if one[n] != other[n]} == {"mix", "quantize"}


# What it is worth.


@pytest.mark.matrix
def test_a_mix_draws_closer_to_full_precision_than_the_worse_format_of_its_size() -> None:
    b, pair = emoji(), ("fp8", "int8_sq")
    ctx, sensed = b.context(), measure(b, pair, 2, alpha=0.2)
    mix.run(ctx, MixView(candidates=list(pair), budget=Budget(bits=8.0), exclude=[]), b.pipeline(), sensed)
    layers = MixFile.read(ctx.out).layers
    assert {x.format for x in layers} == {*pair}
    extremes = load_file(b.stats(CHUNK).path / "extremes.safetensors")

    def drawn(layers: Sequence[MixedLayer]) -> np.ndarray:
        backbone = b.backbone()
        if layers:
            checkpoint.quantize(backbone, scheme.rules(layers), scheme.calibration({x.format for x in layers}, 0.2), extremes)
        return b.draw(open_pipeline(b.context(), b.pipeline(), backbone), list(b.prompts), list(range(7)), 4)

    plain = drawn([])

    def psnr(layers: Sequence[MixedLayer]) -> np.ndarray:
        return -10 * np.log10(((drawn(layers) - plain) ** 2).reshape(7, -1).mean(1))

    better = psnr(layers) - psnr([replace(x, format="fp8") for x in layers])
    assert better.mean() > 1  # dB; over 16 pictures of 10 steps it is 3.3
