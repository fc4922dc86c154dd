"""The native runtime's kernels of formats whose scales are of blocks: INT4, NVFP4 and MXFP8."""

from typing import Any

import pytest
import torch
from tiny import BLOCK, bench
from torch._subclasses.fake_tensor import FakeTensorMode

from diffopt.errors import PlanError
from diffopt.jobs import runtime_checks
from diffopt.kernels import block_scales, mxfp8, nvfp4
from diffopt.kernels.capability import CAPABILITY, KIND
from diffopt.kernels.convert import convert
from diffopt.kernels.int4 import Int4Linear
from diffopt.kernels.kinds import KINDS
from diffopt.kernels.mxfp8 import Mxfp8Linear
from diffopt.kernels.nvfp4 import Nvfp4Linear
from diffopt.quantization import block_codes, block_fake_quant, checkpoint

SCALES = [(1, 1), (127, 3), (128, 4), (129, 5), (384, 12)]
"""Rows and blocks: less than a tile, a tile, and more."""


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers of very different sizes, and some that are ties."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=draw) * torch.exp2(torch.randint(-12, 6, (shape[0], 1), generator=draw))
    x[0, :16] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5.0, 0.0])
    x[1] = 0
    return x


# INT4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_int4_weights_are_bit_for_bit_those_that_are_simulated(dtype: str) -> None:
    b = bench(dtype)
    fake, real = (checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("int4_awq")) for _ in range(2))
    convert(real)
    found: list[tuple[str, Any]] = [(n, m) for n, m in real.named_modules() if isinstance(m, Int4Linear)]
    assert found
    for name, kernel in found:
        layer: Any = fake.get_submodule(name)
        assert torch.equal(kernel.numbers(layer.weight.dtype), layer.weight_quantizer(layer.weight)), name
        x = torch.randn(5, layer.in_features).to(layer.weight.dtype)
        with torch.no_grad():
            assert torch.equal(kernel(x), layer(x)), name


def test_an_int4_weight_takes_half_a_byte_and_a_16_bit_scale_for_a_block() -> None:
    weight = torch.randn(32, 256).bfloat16()
    made = Int4Linear(weight, None, weight.unflatten(1, (-1, 128)).abs().amax(-1).float())
    assert sum(b.nbytes for b in made.buffers()) * 8 / weight.numel() == 4.125


def test_a_scale_that_the_weights_precision_does_not_hold_stays_in_fp32() -> None:
    weight = torch.randn(32, 256).bfloat16()
    assert Int4Linear(weight, None, torch.full((32, 2), 1.001)).amax.dtype == torch.float32


def test_a_block_of_zeros_stays_zero_in_int4() -> None:
    weight = torch.randn(4, 64)
    weight[1, :32] = 0
    made = Int4Linear(weight, None, weight.unflatten(1, (-1, 32)).abs().amax(-1))
    assert (made.numbers(torch.float32)[1, :32] == 0).all()
    assert made.numbers(torch.float32).isfinite().all()


def test_an_odd_number_of_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match="its 33 inputs are an odd number"):
        Int4Linear(torch.randn(4, 33), None, torch.ones(4, 3))


# the codes


def test_nvfp4_codes_stand_for_the_numbers_that_are_simulated() -> None:
    for seed in range(20):
        x = drawn(64, 96, seed=seed)
        amax = x.abs().max() * (0.5 if seed % 2 else 1)  # some are too large
        scale = block_codes.tensor_scale(amax)
        codes, small = block_codes.nvfp4(x, scale)
        values = nvfp4.numbers(codes, torch.ones_like(small.float())).float().unflatten(1, (-1, 16))
        exact = (values * (small.float() * scale)[..., None]).flatten(1)
        assert torch.equal(exact, block_fake_quant.nvfp4(x, amax))
        assert torch.equal(nvfp4.unpacked(nvfp4.packed(codes)), codes)


def test_mxfp8_codes_stand_for_the_numbers_that_are_simulated() -> None:
    for seed in range(20):
        x = drawn(64, 96, seed=seed) * 2.0 ** (10 * (seed - 10))  # from far below to far above 1
        assert torch.equal(mxfp8.numbers(*block_codes.mxfp8(x)).float(), block_fake_quant.mxfp8(x))


def linear(kind: Any, weight: torch.Tensor, bias: Any, weight_amax: torch.Tensor, input_amax: torch.Tensor) -> Any:
    if kind is Nvfp4Linear:
        return kind(block_codes.nvfp4_by_maxima(weight, weight_amax), bias, input_amax)
    return kind(weight, bias)


@pytest.mark.parametrize("kind", [Nvfp4Linear, Mxfp8Linear])
def test_a_layer_adds_up_the_products_of_the_simulated_numbers(kind: Any) -> None:
    weight, x, bias = drawn(48, 96, seed=1), drawn(21, 96, seed=2), torch.randn(48)
    peaks = weight.abs().max(), x.abs().max()
    four = kind is Nvfp4Linear
    made = linear(kind, weight, bias, *peaks)
    pair = zip((weight, x), peaks, strict=True)
    w, a = (block_fake_quant.nvfp4(t, peak) if four else block_fake_quant.mxfp8(t) for t, peak in pair)
    exact = a.double() @ w.double().T + bias.double()
    assert float((made(x).double() - exact).norm() / exact.norm()) < 1e-6


@pytest.mark.parametrize("kind", [Nvfp4Linear, Mxfp8Linear])
@pytest.mark.parametrize("shape", [(32, 48), (24, 64)], ids=["inputs", "outputs"])
def test_lengths_that_the_block_products_do_not_take_are_refused(kind: Any, shape: tuple[int, int]) -> None:
    weight = torch.randn(*shape)
    with pytest.raises(ValueError, match=f"its {shape[1]} inputs and {shape[0]} outputs are not multiples of 32 and 16"):
        linear(kind, weight, None, torch.tensor(1.0), torch.tensor(1.0))


# what a GPU is given


@pytest.mark.parametrize(("rows", "blocks"), SCALES)
def test_scales_lie_in_tiles_as_torchao_lays_them(rows: int, blocks: int) -> None:
    to_blocked = pytest.importorskip("torchao.prototype.mx_formats.utils").to_blocked
    scales = torch.randint(1, 120, (rows, blocks), dtype=torch.uint8).view(torch.float8_e4m3fn)
    tiles = block_scales.tiled(scales)
    assert tiles.shape == (block_scales.length(rows, blocks),)
    assert torch.equal(tiles.float(), to_blocked(scales.float()).flatten())
    assert torch.equal(block_scales.straight(tiles, rows, blocks).float(), scales.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", [Nvfp4Linear, Mxfp8Linear])
def test_the_product_takes_the_codes_and_the_scales_by_torchs_own_checks(kind: Any, dtype: torch.dtype) -> None:
    weight, bias = torch.randn(336, 320, dtype=dtype), torch.randn(336, dtype=dtype)
    for scales in ("right", "wrong"):
        made = linear(kind, weight, bias, torch.tensor(3.0), torch.tensor(3.0))
        made.block_scales = made.block_scales if scales == "right" else made.block_scales[:-16]
        with FakeTensorMode() as mode:
            for name, buffer in made.named_buffers():
                made._buffers[name] = mode.from_tensor(buffer).to("cuda")
            x = torch.empty(2, 77, 320, dtype=dtype, device="cuda")
            if scales == "right":
                out = made(x)
                assert (out.shape, out.dtype) == ((2, 77, 336), dtype)
            else:
                with pytest.raises(RuntimeError, match="scale"):
                    made(x)


def test_layers_are_compiled_without_a_break() -> None:
    weight, x, smoothing = torch.randn(48, 64), torch.randn(2, 21, 64), torch.rand(64) + 0.5
    low_rank = torch.randn(8, 64), torch.randn(48, 8)
    for made in (
        Int4Linear(weight, None, weight.unflatten(1, (-1, 32)).abs().amax(-1), smoothing),
        Nvfp4Linear(block_codes.nvfp4_by_maxima(weight, weight.abs().max()), None, x.abs().max(), smoothing, low_rank),
        Mxfp8Linear(weight, None),
    ):
        assert torch.equal(torch.compile(made, backend="aot_eager", fullgraph=True)(x), made(x))


# conversion


@pytest.mark.parametrize("name", ["int4_awq", "nvfp4_svdquant"])
def test_a_searched_layer_that_falls_back_keeps_what_the_search_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(layer: Any) -> None:
        raise ValueError("no")

    monkeypatch.setattr("diffopt.kernels.blocks.kernel", refuse)
    b = bench()
    fake, real = (checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name)) for _ in range(2))
    left = convert(real).left
    assert left
    for layer_name in left:
        layer: Any = fake.get_submodule(layer_name)
        layer.input_quantizer.disable()
        x = torch.randn(5, layer.in_features)
        with torch.no_grad(), block_fake_quant.simulated():
            theirs = layer(x)
        assert float((real.get_submodule(layer_name)(x) - theirs).norm() / theirs.norm()) < 1e-5


def test_a_format_of_two_weight_roundings_falls_back_with_the_reason() -> None:
    b = bench()
    made = convert(checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("w4a8_awq")))
    assert not made.kernels
    assert {*made.left.values()} == {"no library that is installed multiplies INT4 weights by FP8 inputs"}


def test_every_kind_has_a_capability_and_a_class() -> None:
    assert {*CAPABILITY} == {*KINDS} == {*KIND.values(), "fp8_attention"}


@pytest.mark.parametrize("name", ["nvfp4", "nvfp4_svdquant", "mxfp8"])
def test_block_formats_are_refused_in_one_line_on_gpus_without_them(
    plan: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(runtime_checks, "gpus", lambda: ({"name": "NVIDIA H200", "capability": "9.0"},))
    with pytest.raises(PlanError) as e:
        plan("model=emoji_flux", f"format={name}", "calib=emoji", "eval=emoji", "eval.runtime=native")
    assert str(e.value) == (
        f"eval.runtime: {name} has kernels from compute capability 10.0 on (got NVIDIA H200 with 9.0); "
        "set eval.runtime=torch, which simulates"
    )


def test_block_formats_run_on_gpus_that_have_them(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_checks, "gpus", lambda: ({"name": "NVIDIA B200", "capability": "10.0"},))
    assert plan("model=emoji_flux", "format=mxfp8", "eval=emoji", "eval.runtime=native").steps


def test_int4_falls_back_nowhere_where_its_blocks_fit() -> None:
    b = bench()
    made = convert(checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("int4_awq")))
    assert (made.left, made.kernels) == ({}, {"int4": 20})
    assert BLOCK == 32
