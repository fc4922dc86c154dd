"""Weights rounded by GPTQ: modelopt's own rounding by scales that were searched, kept as codes."""

import copy
from math import prod
from types import SimpleNamespace
from typing import Any

import modelopt.torch.quantization as mtq
import pytest
import torch
from conftest import some
from pydantic import ValidationError
from quantized import INT4
from safetensors.torch import load_file
from test_weight_scales import by_modelopt, layer, static
from tiny import CHUNK, RANK, Bench, bench, call, recipe

from diffopt.artifact import Checkpoint
from diffopt.errors import GateError
from diffopt.files.layers import Layer
from diffopt.formats.method import Rounding
from diffopt.groups.choices import Choices
from diffopt.groups.format import Format, FormatView
from diffopt.jobs import memory
from diffopt.quantization import checkpoint, gptq, grid
from diffopt.quantization.awq_svdquant import A, B
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.gptq import Gptq
from diffopt.quantization.numbers import unpacked
from diffopt.quantization.recorded_calls import replay
from diffopt.quantization.weight_scales import CODES, ROUNDED, Search, blocks, of_model, put

FORMATS = ["nvfp4", "nvfp4_svdquant", "int4_awq"]
KINDS = {"nvfp4": static("max"), "int4_awq": INT4}
KEPT = (CODES, ROUNDED, A, B)
DAMPING = 0.01
"""modelopt's own."""


def one(weight: torch.Tensor, x: torch.Tensor, name: str) -> Any:
    """A model of one layer that is calibrated on maxima, which its blocks keep."""
    kind = KINDS[name] | ({"block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}} if name == "nvfp4" else {})
    model = by_modelopt(weight, x, kind, "max")
    put(model, of_model(model, Search("max", {}, keep=True)), "max")
    return model


def rounded(model: Any, x: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    found = Gptq(model, damping)(lambda m: m(x))
    put(model, found, "max")
    return model[0].weight.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*KINDS])
def test_a_weight_is_rounded_as_modelopt_rounds_it(name: str, dtype: torch.dtype) -> None:
    weight, x = layer(0, dtype)
    theirs = by_modelopt(weight, x, KINDS[name], {"method": "gptq", "perc_damp": DAMPING})
    ours = one(weight, x, name)
    plain = ours[0].weight_quantizer
    with torch.no_grad(), simulated():
        nearest = plain(weight)
    found = rounded(ours, x)
    assert torch.equal(found, theirs[0].weight)
    assert not torch.equal(found, nearest)


@pytest.mark.parametrize("name", [*KINDS])
def test_less_is_lost_than_by_rounding_to_the_nearest(name: str) -> None:
    """Of inputs of the same kind that were not seen, with few that were seen and as much damping as is the default."""
    weight, x = layer(3)
    x = x @ torch.randn(128, 128)  # which vary together
    seen, other = x[:100], x[100:]
    model = one(weight, seen, name)
    with torch.no_grad(), simulated():
        nearest = model[0].weight_quantizer(weight)
    found = rounded(model, seen, 1.0)
    lost = [float((other @ (w - weight).T).square().mean()) for w in (found, nearest)]
    assert lost[0] < 0.8 * lost[1]


def test_more_damping_comes_nearer_to_the_nearest() -> None:
    weight, x = layer(4)
    x = x @ torch.randn(128, 128)
    with torch.no_grad(), simulated():
        nearest = one(weight, x, "nvfp4")[0].weight_quantizer(weight)
    off = [float((rounded(one(weight, x, "nvfp4"), x, damping) != nearest).float().mean()) for damping in (0.01, 1.0, 1e6)]
    assert off[0] > off[1] > off[2] == 0


def test_the_weights_are_those_of_modelopts_loop_over_the_backbone() -> None:
    """With inputs that are rounded, and scales of maxima."""
    b = bench()
    theirs, (rules, _) = b.backbone(), recipe("nvfp4")
    rules = [r | {"cfg": static("max")} if "weight" in r["quantizer_name"] else r for r in copy.deepcopy(rules)]
    loop = replay([r.path for r in b.recordings(CHUNK)])
    with torch.no_grad(), simulated():
        mtq.quantize(theirs, {"quant_cfg": rules, "algorithm": {"method": "gptq", "perc_damp": DAMPING}}, loop)
    ours = restored(b, "nvfp4", damping=DAMPING)
    names = checkpoint.quantized_layers(ours)
    assert names == checkpoint.quantized_layers(theirs)
    for name in names:
        assert torch.equal(ours.get_submodule(name).weight, theirs.get_submodule(name).weight), name


def restored(b: Bench, name: str, **kw: Any) -> torch.nn.Module:
    return checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name, rounding="gptq", **kw))


@pytest.mark.parametrize("name", some(FORMATS, FORMATS))
def test_a_checkpoint_is_restored_to_the_bit_and_its_weights_are_rounded_already(name: str) -> None:
    b = bench()
    models = [restored(b, name, weights="local_hessian") for _ in range(2)]
    assert torch.equal(*(call(m, b.inputs()) for m in models))
    stored = load_file(b.checkpoint(name, rounding="gptq", weights="local_hessian").path / checkpoint.STATE)
    nearest = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name, weights="local_hessian"))
    off = 0
    for path, own in blocks(models[0]):
        codes = stored[f"{path}.weight_quantizer{ROUNDED}"]
        assert torch.equal(grid.of(own).codes(own.weight.detach()), codes), path
        with torch.no_grad(), simulated():
            assert torch.equal(own.weight_quantizer(own.weight), own.weight), path
            there: Any = nearest.get_submodule(path)
            off += int((there.weight_quantizer(there.weight) != own.weight).sum())
    assert off > 0


def test_turns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()

    def found(room: int) -> tuple[int, dict[str, torch.Tensor]]:
        monkeypatch.setattr(gptq, "ON_CPU", room)
        model = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("nvfp4", weights="local_hessian"))
        how = Gptq(model, 1.0)
        return how.passes, how(replay([r.path for r in b.recordings(CHUNK)]))

    (once, whole), (often, parts) = found(gptq.ON_CPU), found(1)
    assert once == 1
    assert often == len(whole) > 1
    assert whole.keys() == parts.keys()
    assert all(torch.equal(x, parts[n]) for n, x in whole.items())


@pytest.mark.parametrize("name", [*KINDS])
def test_a_block_of_zeros_stays_zeros(name: str) -> None:
    weight, x = layer(5)
    weight[7, :32] = 0
    model = one(weight, x, name)
    found = rounded(model, x)
    assert not found[7, :32].any()
    assert found[7, 32:].any()
    assert torch.isfinite(found).all()


def test_codes_are_two_in_a_byte_and_tell_all_numbers() -> None:
    weight, x = layer(6)
    for name in KINDS:
        own = grid.of(one(weight, x, name)[0])
        codes = own.codes(weight)
        assert codes.shape == (96, 64)
        assert len(unpacked(codes).unique()) == 15  # of E2M1 without a negative zero, of INT4 by maxima without -8
        assert torch.equal(own.codes(own.numbers(codes)), codes)


def test_a_weight_that_was_trained_is_none_of_codes_any_more() -> None:
    """One that was not trained stays what its codes say."""
    b = bench()
    ptq, ctx = b.checkpoint("nvfp4", rounding="gptq", weights="local_hessian"), b.context()
    before = checkpoint.restore(b.context(), b.pipeline(), ptq)
    first, second, *_ = checkpoint.quantized_layers(before)
    weight = torch.randn_like(before.get_submodule(first).weight)
    checkpoint.save_trained(ctx.out, ptq, {f"{first}.weight": weight})
    after = checkpoint.restore(b.context(), b.pipeline(), Checkpoint(ctx.out, "checkpoint"))
    assert torch.equal(after.get_submodule(first).weight, weight)
    assert torch.equal(after.get_submodule(second).weight, before.get_submodule(second).weight)
    stored = [{n for n in load_file(p / checkpoint.STATE) if n.endswith(ROUNDED)} for p in (ptq.path, ctx.out)]
    assert stored[0] - stored[1] == {f"{first}.weight_quantizer{ROUNDED}"}


@pytest.mark.parametrize(("name", "rounding"), [("nvfp4", "nearest"), ("nvfp4", "gptq"), ("nvfp4_svdquant", "nearest")])
def test_what_a_checkpoint_takes_is_foretold(name: str, rounding: Rounding) -> None:
    b = bench()
    found = b.checkpoint(name, rounding=rounding, weights="local_hessian")
    layers = dict(blocks(checkpoint.restore(b.context(), b.pipeline(), found)))
    kept = [x.nbytes for n, x in load_file(found.path / checkpoint.STATE).items() if any(part in n for part in KEPT)]
    format = Format(name=name, rounding=rounding, rank=RANK if name == "nvfp4_svdquant" else None)
    shapes = [Layer(n, "linear", tuple(x.weight.shape)) for n, x in layers.items()]
    width = next(iter(layers.values())).weight.itemsize
    body: Any = SimpleNamespace(width=width, backbone=width * sum(prod(x.shape) for x in shapes))
    rules = memory.Rules(Choices(0, format=format), body, shapes)
    assert sum(kept) == memory._found(rules, body) > 0


def test_inputs_that_awq_scales_are_weighed_as_they_reach_the_weight() -> None:
    """modelopt collects them without the scale, since AWQ switches their quantizer off."""
    weight, x = layer(8)
    x = x @ torch.randn(128, 128) * torch.rand(128).pow(3)
    model = by_modelopt(weight, x, INT4, "awq_lite")
    scale = model[0].input_quantizer.pre_quant_scale.detach().flatten()
    assert not model[0].input_quantizer.is_enabled
    assert scale.max() > 2 * scale.min()
    smoothed = one(model[0].weight.detach().clone(), x * scale, "int4_awq")
    plain = one(model[0].weight.detach().clone(), x, "int4_awq")
    found, expected = rounded(model, x, 1.0), rounded(smoothed, x * scale, 1.0)
    assert torch.equal(model[0].weight_quantizer.amax, smoothed[0].weight_quantizer.amax)
    assert float((found == expected).float().mean()) > 0.999  # a product's last bits
    assert float((rounded(plain, x, 1.0) == expected).float().mean()) < 0.99


@pytest.mark.parametrize("kind", ["four_over_six", "mse"])
def test_searched_scales_stay_and_the_weight_is_of_their_numbers(kind: Any) -> None:
    weight, x = layer(9)
    model = by_modelopt(weight, x, KINDS["nvfp4"] | {"block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}, "max")
    put(model, of_model(model, Search(kind, {})), kind)
    before = model[0].weight_quantizer.amax.clone()
    found = rounded(model, x)
    assert torch.equal(model[0].weight_quantizer.amax, before)
    with torch.no_grad(), simulated():
        assert torch.equal(model[0].weight_quantizer(found), found)


def test_what_nothing_reaches_is_rounded_to_the_nearest_and_named(caplog: pytest.LogCaptureFixture) -> None:
    weight, x = layer(10)
    caplog.set_level("INFO")
    model = one(weight, x, "nvfp4")
    with torch.no_grad(), simulated():
        nearest = model[0].weight_quantizer(weight)
    assert torch.equal(rounded(model, torch.zeros_like(x)), nearest)
    assert "0 is rounded to the nearest" in caplog.text


def test_inf_is_refused_by_the_layers_name() -> None:
    weight, x = layer(11)
    model = one(weight, x, "int4_awq")
    with pytest.raises(GateError, match=r"inf or NaN reached 0 "):
        Gptq(model, 1.0)(lambda m: m(x * float("inf")))


def test_it_is_of_formats_that_have_it_and_keys_without_it_stay() -> None:
    def identity(name: str, **fields: Any) -> dict[str, Any]:
        choices = Choices(seed=0, format=Format(name=name, **fields))
        assert choices.format is not None
        (view,) = FormatView.split(choices.format, choices)
        assert view.rounding == ("gptq" if fields.get("rounding") and name in FORMATS else "nearest")
        return view.identity(FormatView.used(choices))

    for name in FORMATS:
        assert identity(name, damping=0.5) == identity(name)
        assert not {"rounding", "damping"} & {*identity(name)}
        assert identity(name, rounding="gptq") == identity(name) | {"rounding": "gptq", "damping": 1.0}
    for name in ("fp8", "w4a8_awq", "mxfp8", "int8_sq"):
        assert identity(name, rounding="gptq") == identity(name)


def test_the_room_is_what_is_foretold() -> None:
    assert (memory.GPTQ_ON_GPU, memory.GPTQ_ON_CPU) == (gptq.ON_GPU, gptq.ON_CPU)


def test_awqs_clipping_names_the_weights_scales_that_go_with_it() -> None:
    with pytest.raises(ValidationError, match=r"\(got mse\); set format\.weights=max, or format\.awq=lite"):
        Format(name="int4_awq", awq="full", weights="mse", rounding="gptq")
    assert Format(name="int4_awq", awq="full", weights="max", rounding="gptq").rounding == "gptq"
