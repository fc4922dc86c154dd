"""The rules of each format as modelopt applies them."""

import copy

import modelopt.torch.quantization as mtq
import pytest
import torch
from safetensors.torch import load_file
from tiny import BLOCK, RANK, bench, recipe

from diffopt import formats
from diffopt.quantization import checkpoint
from diffopt.quantization.awq_svdquant import calibrate
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.extremes import quantizers
from diffopt.quantization.recorded_calls import replay

NAMES = ["int8", "int8_sq", "fp8", "int4_awq", "w4a8_awq", "nvfp4", "nvfp4_svdquant", "mxfp8"]
WEIGHT_ONLY = ["int4_awq"]
CONVOLUTIONS = ["int8", "int8_sq", "fp8"]
every = pytest.mark.parametrize("name", NAMES)


def quantized(name: str, alpha: float = 0.5, mha: bool = False, exclude: tuple[str, ...] = ()) -> torch.nn.Module:
    """Made once for every choice of arguments, and not to be changed."""
    b = bench()

    def make(_: object) -> torch.nn.Module:
        model, method = b.backbone(), formats.method(name)
        if method.records:
            calibrate(model, *recipe(name, alpha, mha, exclude), replay([b.recording(0, 1, steps=1).path]))
        else:
            extremes = load_file(b.stats(4).path / "extremes.safetensors") if method.observes else {}
            checkpoint.quantize(model, *recipe(name, alpha, mha, exclude), extremes)
        return model

    return b._once(("formats", name, alpha, mha, exclude), make)


def enabled(model: torch.nn.Module) -> set[str]:
    return {n for n, q in quantizers(model) if q.is_enabled}


def layers_on(model: torch.nn.Module) -> dict[str, set[str]]:
    """By layer, which of its quantizers are on: weight, input, output."""
    found: dict[str, set[str]] = {}
    for name in enabled(model):
        layer, _, quantizer = name.partition("_quantizer")[0].rpartition(".")
        found.setdefault(layer, set()).add(quantizer)
    return found


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


def mixed_quantized(mixed: torch.nn.Module, name: str, convolutions: bool = False) -> torch.nn.Module:
    model = copy.deepcopy(mixed)
    method = formats.method(name)
    rules = method.rules([], [], quantize_mha=False, block_size=16, convolutions=convolutions)
    config = {"quant_cfg": rules, "algorithm": method.calibration(0.5, rank=4)}

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
    assert layers_on(model) == {"linear": {"weight"} if name in WEIGHT_ONLY else {"weight", "input"}}
    assert {n for n, _ in quantizers(model)} >= {"conv.weight_quantizer", "conv.input_quantizer", "norm.input_quantizer"}


@every
def test_the_input_of_a_layer_norm_is_never_quantized(name: str) -> None:
    model = quantized(name)
    parents = dict(model.named_modules())
    norms = [n for n, _ in quantizers(model) if isinstance(parents[n.rpartition(".")[0]], torch.nn.LayerNorm)]
    assert norms
    assert not enabled(model) & set(norms)


@every
def test_convolutions_are_quantized_only_where_the_family_has_them_and_the_format_takes_them(
    name: str, mixed: torch.nn.Module
) -> None:
    both = {"weight", "input"}
    linear = {"weight"} if name in WEIGHT_ONLY else both
    wanted = {"linear": linear, "conv": both} if name in CONVOLUTIONS else {"linear": linear}
    assert layers_on(mixed_quantized(mixed, name, convolutions=True)) == wanted


@pytest.mark.parametrize("name", [n for n in NAMES if n not in CONVOLUTIONS])
@pytest.mark.parametrize("convolutions", [False, True])
def test_no_convolution_gets_the_attributes_of_a_block_format(name: str, convolutions: bool, mixed: torch.nn.Module) -> None:
    model = mixed_quantized(mixed, name, convolutions)
    found = dict(quantizers(model))
    first = next(q for n, q in found.items() if n.startswith("linear.weight_quantizer"))
    assert first.block_sizes
    for kind in ("weight", "input", "output"):
        quantizer = found[f"conv.{kind}_quantizer"]
        assert quantizer.num_bits == 8
        assert not quantizer.block_sizes


@pytest.mark.parametrize("name", ["int8", "int8_sq"])
def test_a_convolution_has_a_scale_per_output_channel_and_one_for_its_input(name: str, mixed: torch.nn.Module) -> None:
    conv = mixed_quantized(mixed, name, convolutions=True)["conv"]
    assert conv.weight_quantizer.amax.flatten().shape == (32,)
    assert conv.input_quantizer.amax.numel() == 1
    assert conv.input_quantizer.pre_quant_scale is None


@every
def test_no_output_is_quantized(name: str) -> None:
    assert not [n for n in enabled(quantized(name)) if n.endswith("output_quantizer")]


@pytest.mark.parametrize(
    ("name", "bits", "amax"),
    [
        ("int8", 8, "per row"),
        ("int8_sq", 8, "per row"),
        ("fp8", (4, 3), "per tensor"),
        ("nvfp4", (2, 1), "per tensor"),
        ("nvfp4_svdquant", (2, 1), "per tensor"),
        ("int4_awq", 4, "per block"),
    ],
)
def test_a_weight_has_the_bits_and_the_scales_of_its_format(name: str, bits: object, amax: str) -> None:
    layer = quantized(name).get_submodule("transformer_blocks.0.ff.net.2")
    assert layer.weight_quantizer.num_bits == bits
    rows = layer.weight.abs().amax(1, keepdim=True)
    blocks = layer.weight.abs().unflatten(1, (-1, BLOCK)).amax(-1)
    wanted = {"per row": rows, "per tensor": rows.max(), "per block": blocks}[amax]
    assert layer.weight_quantizer.amax.numel() == wanted.numel()
    assert torch.equal(layer.weight_quantizer.amax, wanted.reshape(layer.weight_quantizer.amax.shape))


def test_the_weights_of_w4a8_are_int4_in_blocks_and_then_fp8() -> None:
    first, second = quantized("w4a8_awq").get_submodule("transformer_blocks.0.ff.net.2").weight_quantizer
    assert (first.num_bits, first.block_sizes[-1]) == (4, BLOCK)
    assert (second.num_bits, second.block_sizes) == ((4, 3), None)
    assert second.amax.numel() == 1


def test_the_values_and_scales_of_mxfp8_are_found_as_a_tensor_passes() -> None:
    for _, quantizer in quantizers(quantized("mxfp8")):
        if quantizer.is_enabled:
            assert quantizer.is_mxfp(8)
            assert quantizer.amax is None


@pytest.mark.parametrize("name", ["int4_awq", "w4a8_awq", "nvfp4_svdquant"])
def test_a_search_scales_channels_and_their_weights_against_each_other(name: str) -> None:
    layer_name = "single_transformer_blocks.0.proj_out"
    layer, plain = quantized(name).get_submodule(layer_name), bench().backbone().get_submodule(layer_name).weight
    scale = layer.input_quantizer.pre_quant_scale
    assert scale.shape == (plain.shape[1],)
    assert len(scale.unique()) > 10
    weight = layer.weight
    if name == "nvfp4_svdquant":
        weight = weight + layer.weight_quantizer.svdquant_lora_b @ layer.weight_quantizer.svdquant_lora_a
    torch.testing.assert_close(weight * scale, plain)


def test_svdquant_keeps_the_largest_singular_values_beside_the_weight() -> None:
    layer = quantized("nvfp4_svdquant").get_submodule("single_transformer_blocks.0.proj_out")
    a, b = layer.weight_quantizer.svdquant_lora_a, layer.weight_quantizer.svdquant_lora_b
    assert (a.shape[0], b.shape[1]) == (RANK, RANK)
    whole = torch.linalg.svdvals(layer.weight + b @ a)
    torch.testing.assert_close(torch.linalg.svdvals(layer.weight)[: len(whole) - RANK], whole[RANK:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("int4_awq", "mxfp8")])
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


@pytest.mark.parametrize("name", ["int8", "fp8", "nvfp4", "mxfp8"])
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
    assert any(n.startswith("transformer_blocks.0.") for n in enabled(quantized(name)))


@pytest.mark.parametrize("name", ["int8_sq", "int4_awq", "w4a8_awq", "nvfp4_svdquant"])
def test_the_weights_of_an_excluded_layer_stay_as_they_are(name: str) -> None:
    layer = "transformer_blocks.0.ff.net.2"
    plain = bench().backbone().get_submodule(layer).weight
    assert torch.equal(quantized(name, exclude=("transformer_blocks.0",)).get_submodule(layer).weight, plain)
    assert not torch.equal(quantized(name).get_submodule(layer).weight, plain)


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
    blocks = ("transformer_blocks", "single_transformer_blocks")
    assert found == {f"{block}.0.attn.{which}_bmm_quantizer" for block in blocks for which in "qkv"}
    for n, quantizer in quantizers(model):
        if n in found:
            assert quantizer.num_bits == (4, 3)
            assert not quantizer.block_sizes


@pytest.mark.parametrize(
    ("name", "block_size", "bits"),
    [
        ("int8", None, 8),
        ("int8_sq", None, 8),
        ("fp8", None, 8),
        ("int4_awq", None, 4 + 16 / 128),
        ("int4_awq", 64, 4 + 16 / 64),
        ("w4a8_awq", 32, 4 + 16 / 32),
        ("nvfp4", None, 4 + 8 / 16),
        ("nvfp4_svdquant", None, 4 + 8 / 16),
        ("mxfp8", None, 8 + 8 / 32),
    ],
)
def test_a_method_says_how_many_bits_a_weight_takes(name: str, block_size: int | None, bits: float) -> None:
    assert formats.method(name).bits(block_size) == bits


@every
def test_a_format_is_calibrated_on_extremes_or_recordings_or_nothing(name: str) -> None:
    method = formats.method(name)
    searched, nothing = ("int4_awq", "w4a8_awq", "nvfp4_svdquant"), ("mxfp8",)
    assert (method.records, method.observes) == (name in searched, name not in searched + nothing)


@every
def test_a_methods_name_is_its_files(name: str) -> None:
    assert formats.method(name).name == name


@every
def test_making_rules_does_not_change_the_method(name: str) -> None:
    before = copy.deepcopy(formats.method(name))
    quantized(name)
    assert formats.method(name) == before
