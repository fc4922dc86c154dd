"""Scales of weights that are searched are modelopt's own, are made of one calibration, and are what is shipped."""

import copy
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import pytest
import torch
from conftest import some
from quantized import INT4
from safetensors.torch import load_file
from test_calibrate_once import pipeline_loop
from test_packing import unpacked
from tiny import STEPS, Bench, bench, call, recipe, saved

from diffopt.graph.packing import pack
from diffopt.groups.validate import choose
from diffopt.jobs import job
from diffopt.jobs.plan import Plan, make_plan
from diffopt.jobs.runner import run_plan
from diffopt.kernels.convert import convert
from diffopt.kernels.nvfp4 import Nvfp4Linear
from diffopt.layouts import modelopt
from diffopt.pipeline.open import open_pipeline
from diffopt.quantization import block_search, checkpoint, hessian, static_blocks, weight_scales
from diffopt.quantization.block_fake_quant import BLOCK, e2m1, simulated
from diffopt.quantization.numbers import numbers
from diffopt.quantization.recorded_calls import replay
from diffopt.quantization.weight_scales import CODES
from diffopt.store.source import Sources
from diffopt.store.store import Store

SIX = {"method": "mse", "start_multiplier": 1.0, "stop_multiplier": 1.5, "step_size": 0.5}
ALGORITHMS = {
    "mse": {"method": "mse", "fp8_scale_sweep": True},
    "local_hessian": {"method": "local_hessian", "fp8_scale_sweep": True},
    "four_over_six": SIX,
}
"""modelopt's, of static blocks."""
KINDS = [*ALGORITHMS]
SEARCHED = [("nvfp4", kind) for kind in KINDS] + [("nvfp4_svdquant", "local_hessian"), ("int4_awq", "local_hessian")]
SHIPPED = [(name, kind) for name in ("nvfp4", "nvfp4_svdquant") for kind in KINDS]
searched = pytest.mark.parametrize(("name", "kind"), some(SEARCHED, [SEARCHED[1], *SEARCHED[3:]]))


def static(kind: str) -> dict[str, Any]:
    blocks = {-1: 16, "type": "static", "scale_bits": (4, 3)}
    return {"num_bits": (2, 1), "block_sizes": blocks | ({"four_over_six": True} if kind == "four_over_six" else {})}


def layer(seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [96, 128] and inputs [200, 128], of channels of very different sizes."""
    torch.manual_seed(seed)
    return torch.randn(96, 128).to(dtype) / 10, (torch.randn(200, 128) * torch.rand(128).pow(3) * 8).to(dtype)


def by_modelopt(weight: torch.Tensor, x: torch.Tensor, attributes: dict[str, Any], algorithm: Any) -> Any:
    """A model of one linear layer that modelopt calibrated on x."""
    model = torch.nn.Sequential(torch.nn.Linear(*reversed(weight.shape), bias=False, dtype=weight.dtype))
    model[0].weight.data.copy_(weight)
    cfg = copy.deepcopy(attributes)
    rules = [{"quantizer_name": "*", "enable": False}, {"quantizer_name": "*weight_quantizer", "cfg": cfg}]
    with torch.no_grad(), simulated():
        mtq.quantize(model, {"quant_cfg": rules, "algorithm": copy.deepcopy(algorithm)}, lambda m: m(x))
    return model


def sought(weight: torch.Tensor, x: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "four_over_six":
        return block_search.four_over_six(weight, weight.abs().max())
    return block_search.nvfp4(weight, weight.abs().max(), hessian.products(x) / len(x) if kind == "local_hessian" else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_nvfp4_scales_are_those_that_modelopt_finds(kind: str, dtype: torch.dtype) -> None:
    weight, x = layer(0, dtype)
    theirs = by_modelopt(weight, x, static(kind), ALGORITHMS[kind])[0].weight_quantizer
    ours, peak = sought(weight, x, kind), weight.abs().max()
    most = static_blocks.largest(theirs)
    assert torch.equal(static_blocks.codes(theirs.amax, theirs.global_amax, most).view(96, -1), ours)
    whole = ours.float() * static_blocks.tensor_scale(peak, most)
    with torch.no_grad(), simulated():
        assert torch.equal(static_blocks.rounded(weight, whole), theirs(weight))


@pytest.mark.parametrize("kind", ["mse", "local_hessian"])
def test_int4_scales_are_those_that_modelopt_finds(kind: str) -> None:
    weight, x = layer(1)
    theirs = by_modelopt(weight, x, INT4, {"method": kind, "fp8_scale_sweep": False})[0].weight_quantizer
    amax = weight.unflatten(1, (-1, 32)).abs().amax(-1).reshape(-1, 1)
    ours = block_search.int4(weight, amax, hessian.products(x) / len(x) if kind == "local_hessian" else None)
    assert torch.equal(ours, theirs.amax)
    assert not torch.equal(ours, amax)


def test_a_tensor_is_searched_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = layer(2)
    whole = sought(weight, x, "local_hessian")
    monkeypatch.setattr(block_search, "AT_ONCE", 7 * weight.shape[1])
    assert torch.equal(sought(weight, x, "local_hessian"), whole)


def test_the_local_hessian_makes_the_output_better_than_the_weights_error_does() -> None:
    weight, x = layer(3)
    errors = {}
    for kind in KINDS:
        scale = static_blocks.tensor_scale(weight.abs().max(), 256.0 if kind == "four_over_six" else 448.0)
        rounded = static_blocks.rounded(weight, sought(weight, x, kind).float() * scale)
        errors[kind] = float((x @ (rounded - weight).T).square().mean())
    assert errors["local_hessian"] < errors["mse"] < errors["four_over_six"]


def test_rounding_in_place_is_the_rounding_of_every_value() -> None:
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0, 6.0, float("inf"), 1e-38, 0.0]
    x = torch.cat([torch.tensor(ties), torch.randn(100_000) * 4])
    for signed in (x, -x):
        assert torch.equal(block_search.e2m1_(signed.clone()), e2m1(signed))


# One calibration.


def test_a_layers_hessian_is_the_sum_of_its_inputs_products() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(32, 8), "b": torch.nn.Linear(32, 8), "odd": torch.nn.Linear(24, 8)})
    x = [torch.randn(3, 5, 32), torch.randn(2, 32)]
    with hessian.correlated(model) as found:
        for each in x:
            model["a"](each), model["b"](each), model["odd"](torch.randn(2, 24))
    rows = torch.cat([each.reshape(-1, 32) for each in x])
    means = hessian.merge([found])
    assert means.keys() == {"a", "b"}
    for first in (0, 16):
        part = rows[:, first : first + 16]
        assert torch.allclose(means["a"][first // 16], part.T @ part / len(rows), rtol=1e-5, atol=1e-6)
    assert torch.equal(means["a"], means["b"])


def test_layers_of_one_input_have_its_products_also_where_they_part() -> None:
    attention = torch.nn.ModuleDict({n: torch.nn.Linear(32, 8) for n in ("q", "k", "v")})
    model = torch.nn.ModuleDict({"attn": attention})
    x, y = torch.randn(6, 32), torch.randn(4, 32)
    with hessian.correlated(model) as found:
        for _ in range(2):
            for name in ("q", "k", "v"):
                attention[name](x)
        attention["q"](x), attention["k"](y), attention["v"](y)
        attention["v"](y)
    want = {"q": [x, x, x], "k": [x, x, y], "v": [x, x, y, y]}
    for name, inputs in want.items():
        assert torch.allclose(found[f"attn.{name}"], sum(hessian.products(each) for each in inputs), rtol=1e-5)
        assert float(found[f"attn.{name}{hessian.ROWS}"]) == sum(map(len, inputs))


@pytest.mark.parametrize("rows", [4096, 4 * 77, 9216, 1000])
def test_products_by_parts_are_those_of_all_rows(rows: int) -> None:
    x, parts = torch.randn(2, rows // 2, 64, dtype=torch.float64).float(), hessian._parts(rows)
    assert rows % parts == 0
    assert parts == 1 or rows // parts >= hessian.PART
    assert (parts > 1) == (rows in (4096, 9216, 1000))
    blocks = x.double().reshape(rows, -1, 16)
    wanted = torch.einsum("rbi,rbj->bij", blocks, blocks)
    for found in (hessian.products(x, parts), hessian.products(x, 1)):
        assert (found.double() - wanted).norm() < 1e-6 * wanted.norm()


def test_smoothed_hessians_are_those_of_smoothed_inputs() -> None:
    _, x = layer(4)
    scale = torch.rand(128) + 0.5
    assert torch.allclose(hessian.smoothed(hessian.products(x), scale), hessian.products(x * scale), rtol=1e-4, atol=1e-3)


def test_chunks_that_are_merged_have_all_rows_in_them() -> None:
    parts = [load_file(c.path / "hessians.safetensors") for c in bench().hessians(7)]
    merged, alone = hessian.merge(parts), [hessian.merge([p]) for p in parts]
    rows = [float(p[f"{n}{hessian.ROWS}"]) for p in parts for n in [next(iter(merged))]]
    for name, mean in merged.items():
        together = sum(r * a[name].double() for r, a in zip(rows, alone, strict=True)) / sum(rows)
        assert torch.allclose(mean.double(), together, rtol=1e-5), name
    assert rows[0] != rows[1]


KEPT = {
    ("nvfp4", "format.inputs=headroom"): ("observe", "correlate", "count"),
    ("nvfp4_svdquant",): ("record", "correlate"),
}
"""By what is asked for the steps that keep something of a chunk."""


@pytest.mark.parametrize("given", KEPT)
def test_a_chunk_is_drawn_once_for_all_that_is_kept_of_it(
    config: Any, tmp_path: Path, given: tuple[str, ...], monkeypatch: Any
) -> None:
    from diffopt.pipeline import calibration

    drawn, draws = calibration.draw, []
    monkeypatch.setattr(calibration, "draw", lambda *a, **k: (draws.append(a), drawn(*a, **k))[1])
    size = ("height=32", "width=32", "max_sequence_length=16", "long_prompts=cut", f"source={saved('flux')}")
    format, *fields = given
    fields += [*(f"model.{s}" for s in size), "calib.size=4", "calib.batch_size=2", "calib.chunk=2", "calib.n_steps=2"]
    choices = choose(config("+recipe=emoji_fp4", "export=null", "eval=null", f"format={format}", *fields))
    stores = []
    for where in ("together", "apart"):
        store, sources = Store(tmp_path / where), Sources(tmp_path / f"{where}.json")
        store.open()
        whole = make_plan(choices, job.stages(), job.Environment(), sources.digest)
        chunks = [s for s in whole.steps if s.stage.name in ("observe", "record", "correlate", "count")]
        assert {s.name for s in chunks} == {f"{name}.{i}" for name in KEPT[given] for i in range(2)}
        before = [s for s in whole.steps if s.stage.name in ("load", "embed")]
        if where == "together":
            states = [d.state for d in run_plan(Plan(before + chunks, chunks, []), choices, store, sources)]
        else:
            for one in chunks:
                states = [d.state for d in run_plan(Plan([*before, one], [one], []), choices, store, sources)]
        assert states[-1] == "made"
        stores.append({s.name: store.entry(s.kind, s.fingerprint) for s in chunks})
        assert len(draws) == (2 if where == "together" else 2 + 2 * len(KEPT[given]))
    for name, entry in stores[0].items():
        assert entry.record["files"] == stores[1][name].record["files"], name


@pytest.mark.parametrize("kind", ["mse", "local_hessian"])
def test_the_weights_are_those_of_modelopts_loop_over_the_pipeline(kind: str) -> None:
    """Its Hessians are of inputs that are rounded where inputs are quantized; ours never are, so its own are left whole."""
    b = bench()
    pipe = open_pipeline(b.context(), b.pipeline())
    rules, _ = recipe("nvfp4")
    rules = [r | {"cfg": static(kind)} if "weight" in r["quantizer_name"] else r for r in rules if "input" not in str(r)]
    with torch.no_grad(), simulated():
        mtq.quantize(pipe.transformer, {"quant_cfg": rules, "algorithm": ALGORITHMS[kind]}, pipeline_loop(b, pipe, 4, STEPS))
    ours = restored(b, "nvfp4", weights=kind)
    names = checkpoint.quantized_layers(ours)
    assert names == checkpoint.quantized_layers(pipe.transformer)
    for name in names:
        mine, theirs = (m.get_submodule(name).weight_quantizer for m in (ours, pipe.transformer))
        assert torch.equal(mine.amax, theirs.amax), name
        assert torch.equal(mine.global_amax, theirs.global_amax), name


# What is shipped.


def restored(b: Bench, name: str, **kw: Any) -> torch.nn.Module:
    return checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name, **kw))


@searched
def test_a_checkpoint_is_restored_to_the_bit_and_is_not_that_of_maxima(name: str, kind: str) -> None:
    b = bench()
    found = [call(restored(b, name, weights=kind), b.inputs()) for _ in range(2)]
    assert torch.equal(*found)
    assert not torch.equal(found[0], call(restored(b, name), b.inputs()))


@pytest.mark.parametrize("awq", ["clip", "full"])
def test_clipping_is_restored_to_the_bit_as_modelopt_found_it(awq: str) -> None:
    b = bench()
    rules, _ = recipe("int4_awq")
    theirs = b.backbone()
    with torch.no_grad():
        mtq.quantize(theirs, {"quant_cfg": rules, "algorithm": f"awq_{awq}"}, replay([r.path for r in b.recordings(4)]))
    ours = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("int4_awq", awq=awq))
    assert torch.equal(call(ours, b.inputs()), call(theirs, b.inputs()))
    assert not torch.equal(call(ours, b.inputs()), call(restored(b, "int4_awq"), b.inputs()))


def test_inputs_that_are_kept_are_not_rounded() -> None:
    model = restored(bench(), "nvfp4", inputs="full")
    name = checkpoint.quantized_layers(model)[0]
    layer: Any = model.get_submodule(name)
    assert not layer.input_quantizer.is_enabled
    assert modelopt.layer(layer, "nvfp4_weights").keys() == {"weight", "weight_scale", "weight_scale_2", "bias"}
    assert not torch.equal(call(model, bench().inputs()), call(restored(bench(), "nvfp4"), bench().inputs()))


def test_a_checkpoint_keeps_a_byte_for_a_block(tmp_path: Path) -> None:
    stored = load_file(bench().checkpoint("nvfp4", weights="local_hessian").path / checkpoint.STATE)
    codes = {n: x for n, x in stored.items() if n.endswith(CODES)}
    assert codes
    for name, x in codes.items():
        weight = bench().backbone().get_submodule(name.removesuffix(f".weight_quantizer{CODES}")).weight
        assert x.dtype == torch.float8_e4m3fn
        assert x.numel() * BLOCK == weight.numel()


@pytest.mark.parametrize(("name", "kind"), some(SHIPPED, [SHIPPED[1], SHIPPED[2], SHIPPED[4]]))
def test_graphs_kernels_and_packages_hold_what_is_simulated(name: str, kind: str) -> None:
    b = bench()
    fake, real = (restored(b, name, weights=kind) for _ in range(2))
    convert(real)
    kernels = {n for n, m in real.named_modules() if isinstance(m, Nvfp4Linear)}
    assert kernels
    for name_ in checkpoint.quantized_layers(fake):
        own: Any = fake.get_submodule(name_)
        with torch.no_grad(), simulated():
            scored, x = own.weight_quantizer(own.weight.detach()), torch.randn(3, own.in_features)
            out = own(x)
        graph = torch.from_numpy(unpacked(pack("w", own._parameters["weight"], own.weight_quantizer, False)))
        package = numbers(modelopt.layer(own, name), name)
        for shipped in (graph, package):
            assert torch.allclose(shipped, scored, rtol=2**-22, atol=0), name_
        if name_ in kernels:
            with torch.no_grad():
                assert torch.allclose(real.get_submodule(name_)(x), out, rtol=1e-4, atol=1e-5), name_


@pytest.mark.parametrize("kind", ["mse", "local_hessian", "four_over_six"])
def test_a_layer_whose_rows_are_no_whole_blocks_keeps_the_scales_of_maxima(kind: str) -> None:
    """As Mochi's feed-forward at some widths, of which no Hessian is kept."""
    model = torch.nn.ModuleDict({"whole": torch.nn.Linear(32, 4), "ragged": torch.nn.Linear(40, 4)})
    state = {f"{n}.weight_quantizer._amax": m.weight.detach().abs().max() for n, m in model.items()}
    search = weight_scales.Search(kind, {"whole": torch.eye(16).repeat(2, 1, 1)})
    assert {*weight_scales.of_layers(model, [*model], state, search)} == {"whole.weight_quantizer._block_scales"}
