"""The rules of each format as modelopt applies them."""

import copy

import modelopt.torch.quantization as mtq
import pytest
import torch
from safetensors.torch import load_file
from tiny import bench, recipe

from diffopt import checkpoint, formats
from diffopt.block_arithmetic import simulated
from diffopt.extremes import quantizers

NAMES = ["int8_sq", "fp8", "nvfp4"]
every = pytest.mark.parametrize("name", NAMES)


def quantized(name: str, alpha: float = 0.5, mha: bool = False, exclude: tuple[str, ...] = ()) -> torch.nn.Module:
    b = bench()
    model = b.backbone()
    extremes = load_file(b.stats(4).path / "extremes.safetensors")
    checkpoint.quantize(model, *recipe(name, alpha, mha, exclude), extremes)
    return model


def enabled(model: torch.nn.Module) -> set[str]:
    return {n for n, q in quantizers(model) if q.is_enabled}


@pytest.fixture(scope="module")
def mixed() -> torch.nn.Module:
    """Layers of several kinds; the normalisations and the convolution have quantizers that must stay off."""
    torch.manual_seed(0)
    return torch.nn.ModuleDict(
        {
            "conv": torch.nn.Conv2d(32, 32, 1),
            "group": torch.nn.GroupNorm(4, 32),
            "norm": torch.nn.LayerNorm(32),
            "linear": torch.nn.Linear(32, 32),
        }
    )


def mixed_quantized(mixed: torch.nn.Module, name: str) -> torch.nn.Module:
    model = copy.deepcopy(mixed)
    method = formats.method(name)
    config = {"quant_cfg": method.rules([], [], quantize_mha=False), "algorithm": method.calibration(0.5)}

    def loop(m: torch.nn.ModuleDict) -> None:
        x = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(0))
        x = m["group"](m["conv"](x))
        m["linear"](m["norm"](x.flatten(2).mT))

    with torch.no_grad(), simulated():
        mtq.quantize(model, config, loop)
    return model


@every
def test_only_the_linear_layers_weight_and_input_are_quantized(name: str, mixed: torch.nn.Module) -> None:
    model = mixed_quantized(mixed, name)
    assert enabled(model) == {"linear.weight_quantizer", "linear.input_quantizer"}
    assert {n for n, _ in quantizers(model)} >= {"conv.weight_quantizer", "conv.input_quantizer", "norm.input_quantizer"}


@every
def test_the_input_of_a_layer_norm_is_never_quantized(name: str) -> None:
    model = quantized(name)
    parents = dict(model.named_modules())
    norms = [n for n, _ in quantizers(model) if isinstance(parents[n.rpartition(".")[0]], torch.nn.LayerNorm)]
    assert norms
    assert not enabled(model) & set(norms)


def test_no_convolution_gets_the_attributes_of_nvfp4(mixed: torch.nn.Module) -> None:
    model = mixed_quantized(mixed, "nvfp4")
    found = dict(quantizers(model))
    assert found["linear.weight_quantizer"].num_bits == (2, 1)
    for kind in ("weight", "input", "output"):
        quantizer = found[f"conv.{kind}_quantizer"]
        assert quantizer.num_bits != (2, 1)
        assert not quantizer.block_sizes


@every
def test_no_output_is_quantized(name: str) -> None:
    assert not [n for n in enabled(quantized(name)) if n.endswith("output_quantizer")]


@pytest.mark.parametrize(
    ("name", "bits", "amax"),
    [("int8_sq", 8, "per row"), ("fp8", (4, 3), "per tensor"), ("nvfp4", (2, 1), "per tensor")],
)
def test_a_weight_has_the_bits_and_the_scales_of_its_format(name: str, bits: object, amax: str) -> None:
    layer = quantized(name).get_submodule("transformer_blocks.0.ff.net.2")
    assert layer.weight_quantizer.num_bits == bits
    rows = layer.weight.abs().amax(1, keepdim=True)
    wanted = rows if amax == "per row" else rows.max()
    assert torch.equal(layer.weight_quantizer.amax, wanted.reshape(layer.weight_quantizer.amax.shape))
    assert layer.weight_quantizer.amax.numel() == (len(rows) if amax == "per row" else 1)


@every
def test_an_input_has_one_scale_for_the_tensor(name: str) -> None:
    model = quantized(name)
    for layer in checkpoint.quantized_layers(model):
        assert model.get_submodule(layer).input_quantizer.amax.numel() == 1


def test_the_blocks_of_nvfp4_are_of_16_with_e4m3_scales() -> None:
    for _, quantizer in quantizers(quantized("nvfp4")):
        if quantizer.is_enabled:
            assert quantizer.block_sizes[-1] == 16
            assert quantizer.block_sizes["scale_bits"] == (4, 3)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.8, 1.0])
def test_alpha_reaches_smoothquant(alpha: float) -> None:
    # Xiao et al. 2022, eq. 4, as what the input is multiplied by: max|W|^(1 - alpha) / max|X|^alpha.
    name = "single_transformer_blocks.0.proj_out"
    inputs = load_file(bench().stats(4).path / "extremes.safetensors")[f"{name}.input_quantizer"]
    weight = bench().backbone().get_submodule(name).weight
    wanted = weight.abs().amax(0) ** (1 - alpha) / inputs**alpha
    layer = quantized("int8_sq", alpha).get_submodule(name)
    torch.testing.assert_close(layer.input_quantizer.pre_quant_scale.flatten(), wanted)
    torch.testing.assert_close(layer.weight, weight / wanted)


@pytest.mark.parametrize("name", ["fp8", "nvfp4"])
def test_formats_without_smoothing_leave_the_weights_as_they_are(name: str) -> None:
    plain, model = dict(bench().backbone().named_parameters()), dict(quantized(name).named_parameters())
    assert plain.keys() == model.keys()
    assert all(torch.equal(plain[n], model[n]) for n in plain)


@every
def test_an_excluded_layer_is_never_calibrated(name: str) -> None:
    model = quantized(name, exclude=("transformer_blocks.0",))
    excluded = [(n, q) for n, q in quantizers(model) if n.startswith("transformer_blocks.0.")]
    assert len(excluded) > 20
    for _, quantizer in excluded:
        assert quantizer.amax is None
        assert quantizer.pre_quant_scale is None
    assert quantized(name).get_submodule("transformer_blocks.0.ff.net.2").input_quantizer.amax is not None


def test_an_excluded_layer_is_never_smoothed() -> None:
    layer = "transformer_blocks.0.ff.net.2"
    plain = bench().backbone().get_submodule(layer).weight
    assert torch.equal(quantized("int8_sq", exclude=("transformer_blocks.0",)).get_submodule(layer).weight, plain)
    assert not torch.equal(quantized("int8_sq").get_submodule(layer).weight, plain)


def test_an_exclusion_takes_attention_out_too() -> None:
    model = quantized("fp8", mha=True, exclude=("transformer_blocks.0",))
    attention = {n for n in enabled(model) if "_bmm_" in n}
    assert attention
    assert not [n for n in attention if n.startswith("transformer_blocks.0.")]


@every
def test_attention_is_quantized_only_when_asked_for(name: str) -> None:
    assert not [n for n in enabled(quantized(name)) if "bmm" in n]


@pytest.mark.parametrize("name", ["fp8", "nvfp4"])
def test_query_key_and_value_of_every_attention_are_quantized_to_fp8(name: str) -> None:
    model = quantized(name, mha=True)
    found = {n for n in enabled(model) if "bmm" in n}
    blocks = [*(f"transformer_blocks.{i}" for i in range(2)), *(f"single_transformer_blocks.{i}" for i in range(2))]
    assert found == {f"{block}.attn.{which}_bmm_quantizer" for block in blocks for which in "qkv"}
    for n, quantizer in quantizers(model):
        if n in found:
            assert quantizer.num_bits == (4, 3)
            assert not quantizer.block_sizes


@every
def test_a_method_says_how_many_bits_a_weight_takes(name: str) -> None:
    method = formats.method(name)
    bits = method.weight["num_bits"]
    blocks = method.weight.get("block_sizes")
    element = bits if isinstance(bits, int) else 1 + sum(bits)
    assert method.weight_bits == element + ((1 + sum(blocks["scale_bits"])) / blocks[-1] if blocks else 0)


@every
def test_a_methods_name_is_its_files(name: str) -> None:
    assert formats.method(name).name == name


@every
def test_making_rules_does_not_change_the_method(name: str) -> None:
    before = copy.deepcopy(formats.method(name))
    quantized(name)
    assert formats.method(name) == before
