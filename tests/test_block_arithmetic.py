"""NVFP4 and MXFP8 on a CPU against slow definitions written here: every code enumerated, ties to the even code.

NVFP4 in the FP32 steps of modelopt's kernel; test_gpu.py compares both with the kernels themselves.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import modelopt.torch.quantization.tensor_quant as tensor_quant
import numpy as np
import pytest
import torch

from diffopt.quantization.block_fake_quant import mxfp8, nvfp4, simulated

E2M1 = [Fraction(v) for v in ("0", "1/2", "1", "3/2", "2", "3", "4", "6")]
E4M3 = [Fraction(m, 8) * Fraction(1, 64) for m in range(8)]
E4M3 += [(1 + Fraction(m, 8)) * Fraction(2) ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)]
UNIT = torch.tensor(6.0 * 448.0)
"""The amax whose tensor scale is 1."""


def nearest(x: np.float32, values: Sequence[Fraction]) -> np.float32:
    """The nearest of the values of codes 0, 1, 2, ...; of two as near the one with the even code; the last beyond it."""
    exact = Fraction(float(x))
    code = min(range(len(values)), key=lambda i: (abs(values[i] - exact), i % 2))
    return np.float32(float(values[code]))


def slow(x: np.ndarray, amax: float) -> np.ndarray:
    """One row, FP32 [n]."""
    tensor_scale = np.float32(amax) * (np.float32(1) / np.float32(2688))  # as torch divides by a number on a GPU
    tensor_scale = tensor_scale if tensor_scale > 0 else np.float32(1e-12)
    found = []
    for start in range(0, len(x), 16):
        block = x[start : start + 16]
        peak = max(np.float32(abs(v)) for v in block)
        scale = nearest(peak / (np.float32(6) * tensor_scale), E4M3) * tensor_scale
        scale = scale if scale >= np.float32(1e-5) else np.float32(1)
        for v in block:
            magnitude = nearest(abs(v) / scale, E2M1) * scale
            found.append(math.copysign(magnitude, v))
    return np.array(found, np.float32)


def test_there_are_127_finite_e4m3_values_up_to_448() -> None:
    assert len(E4M3) == 127
    assert E4M3[-1] == 448
    assert [float(v) for v in E4M3] == torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).tolist()


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("width", [16, 48, 64, 5, 23, 1])
def test_random_tensors_round_as_defined(width: int, spread: float) -> None:
    draw = torch.Generator().manual_seed(width)
    x = torch.randn(6, width, generator=draw) * torch.exp(spread * torch.randn(6, width, generator=draw))
    amax = x.abs().max()
    wanted = np.stack([slow(row, float(amax)) for row in x.numpy()])
    assert np.array_equal(nvfp4(x, amax).numpy(), wanted)


def test_random_tensors_use_every_e2m1_value_and_many_scales() -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 0, 64)[:, None]
    out = nvfp4(x, x.abs().max()).unflatten(-1, (-1, 16))
    top = out.abs().amax(-1, keepdim=True)
    steps = (out.abs() / top * 6).round(decimals=3)
    assert set(steps[top.squeeze(-1) > 0].flatten().tolist()) >= {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0}
    assert len(top.unique()) > 20


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (1.75, 2.0), (2.5, 2.0), (3.5, 4.0), (5.0, 4.0)],
)
@pytest.mark.parametrize("scale", [1.0, 0.5, 416.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_ties_go_to_the_even_mantissa(value: float, rounded: float, scale: float, sign: int) -> None:
    x = torch.zeros(16)
    x[0], x[5] = 6.0 * scale, sign * value * scale
    assert nvfp4(x, UNIT)[5] == sign * rounded * scale


@pytest.mark.parametrize("value", [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
def test_a_value_just_off_a_tie_goes_to_its_nearer_neighbour(value: float) -> None:
    around = torch.tensor([value])
    x = torch.cat([torch.tensor([6.0]), around.nextafter(torch.zeros(1)), around.nextafter(torch.ones(1) * 9), torch.zeros(13)])
    below, above = nvfp4(x, UNIT)[1:3].tolist()
    places = [float(v) for v in E2M1]
    assert places.index(above) == places.index(below) + 1


def test_a_tie_between_two_scales_goes_to_the_even_one() -> None:
    # 1.0625 lies between the E4M3 values 1 and 1.125, 1.1875 between 1.125 and 1.25.
    for middle, scale in ((1.0625, 1.0), (1.1875, 1.25)):
        x = torch.full((16,), 6 * middle)
        assert nvfp4(x, UNIT).unique().tolist() == [6 * scale]


def test_a_block_above_the_calibrated_maximum_saturates() -> None:
    x = torch.tensor([6 * 448.0, 1e5, -1e9, 3e38] * 4)
    assert nvfp4(x, UNIT).tolist() == [2688.0, 2688.0, -2688.0, 2688.0] * 4


def test_an_infinite_value_saturates() -> None:
    x = torch.tensor([float("inf"), -float("inf"), 100.0] + [0.0] * 13)
    assert nvfp4(x, UNIT)[:2].tolist() == [2688.0, -2688.0]


def test_a_nan_stays_a_nan() -> None:
    x = torch.ones(32)
    x[3] = float("nan")
    out = nvfp4(x, UNIT)
    assert out[3].isnan()
    assert not out[16:].isnan().any()


def test_a_block_of_zeros_stays_zero_beside_others() -> None:
    x = torch.cat([torch.zeros(16), torch.full((16,), 3.0)])
    out = nvfp4(x, x.max())
    assert (out[:16] == 0).all()
    assert (out[16:] != 0).all()


def test_a_tensor_of_zeros_stays_zero() -> None:
    assert nvfp4(torch.zeros(2, 32), torch.tensor(0.0)).tolist() == torch.zeros(2, 32).tolist()


def test_a_block_whose_scale_is_below_the_kernels_smallest_is_rounded_on_a_unit_grid() -> None:
    assert (nvfp4(torch.full((2, 32), 1e-5), torch.tensor(1e-5)) == 0).all()
    assert (nvfp4(torch.full((2, 32), 1.1), torch.tensor(0.0)) == 1).all()


def test_a_block_too_small_for_its_scale_becomes_zero() -> None:
    smallest = 6 * 2.0**-10  # half of the smallest scale above zero: a tie, to the even zero
    assert (nvfp4(torch.full((16,), smallest), UNIT) == 0).all()
    assert (nvfp4(torch.full((16,), smallest * 1.01), UNIT) != 0).all()


def test_rounding_is_symmetric() -> None:
    x = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nvfp4(-x, x.abs().max()), -nvfp4(x, x.abs().max()))


def test_the_last_block_of_an_odd_axis_has_a_scale_of_its_own() -> None:
    x = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    out = nvfp4(x, x.abs().max())
    assert out.shape == x.shape
    assert torch.equal(out[:, :16], nvfp4(x[:, :16], x.abs().max()))
    assert torch.equal(out[:, 16:], nvfp4(x[:, 16:], x.abs().max()))


def test_blocks_lie_along_the_last_axis_of_any_shape() -> None:
    x = torch.randn(2, 3, 4, 32, generator=torch.Generator().manual_seed(0))
    flat = torch.stack([nvfp4(row, x.abs().max()) for row in x.reshape(-1, 32)])
    assert torch.equal(nvfp4(x, x.abs().max()), flat.reshape(x.shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_tensors_are_computed_in_fp32(dtype: torch.dtype) -> None:
    x = torch.randn(8, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = nvfp4(x, x.abs().max())
    assert out.dtype == dtype
    wanted = np.stack([slow(row, float(x.abs().max())) for row in x.float().numpy()])
    assert torch.equal(out, torch.from_numpy(wanted).to(dtype))


def test_the_largest_element_of_a_calibrated_maximum_counts() -> None:
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nvfp4(x, torch.tensor([[1.0], [7.0]])), nvfp4(x, torch.tensor(7.0)))
    assert not torch.equal(nvfp4(x, torch.tensor(1.0)), nvfp4(x, torch.tensor(7.0)))


def test_rounding_twice_changes_nothing() -> None:
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))  # no scale is subnormal in E4M3 here
    once = nvfp4(x, x.abs().max())
    assert not torch.equal(once, x)
    assert torch.equal(nvfp4(once, x.abs().max()), once)


# MXFP8


def slow_mxfp8(x: np.ndarray) -> np.ndarray:
    """One row, FP32 [n], in exact fractions."""
    found = []
    for start in range(0, len(x), 32):
        block = x[start : start + 32]
        peak = max(Fraction(float(abs(v))) for v in block)
        scale = Fraction(1)
        if peak:
            ratio = Fraction(float(np.float32(float(peak)) / np.float32(448)))
            exponent = -127
            while exponent < 127 and Fraction(2) ** exponent < ratio:
                exponent += 1
            scale = Fraction(2) ** exponent
        for v in block:
            found.append(math.copysign(float(Fraction(float(nearest_exact(abs(v), scale))) * scale), v))
    return np.array(found, np.float32)


def nearest_exact(x: np.float32, scale: Fraction) -> Fraction:
    exact = Fraction(float(x)) / scale
    code = min(range(len(E4M3)), key=lambda i: (abs(E4M3[i] - exact), i % 2))
    return E4M3[code]


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("width", [32, 64, 5, 45, 1])
def test_random_tensors_round_to_mxfp8_as_defined(width: int, spread: float) -> None:
    draw = torch.Generator().manual_seed(width)
    x = torch.randn(4, width, generator=draw) * torch.exp(spread * torch.randn(4, width, generator=draw))
    assert np.array_equal(mxfp8(x).numpy(), np.stack([slow_mxfp8(row) for row in x.numpy()]))


@pytest.mark.parametrize("exponent", [-130, -126, -20, -1, 0, 1, 60])
def test_an_mxfp8_block_at_a_power_of_two_keeps_its_maximum_and_one_just_above_gets_the_next_scale(exponent: int) -> None:
    peak = torch.tensor(448.0 * 2.0**exponent)
    x = torch.zeros(2, 32)
    x[0, 0], x[1, 0] = peak, peak.nextafter(torch.tensor(torch.inf))
    x[:, 1] = peak / 448 * 17  # between the E4M3 values 16 and 18 of one scale, and half of 34, one of the next
    out = mxfp8(x)
    assert out[0, 0] == peak
    assert out[:, 1].tolist() == [float(peak / 448 * 16)] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_tensors_round_to_mxfp8_in_fp32(dtype: torch.dtype) -> None:
    x = torch.randn(8, 80, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = mxfp8(x)
    assert out.dtype == dtype
    wanted = np.stack([slow_mxfp8(row) for row in x.float().numpy()])
    assert torch.equal(out, torch.from_numpy(wanted).to(dtype))


def test_mxfp8_keeps_zeros_and_nan_and_saturates_infinity() -> None:
    x = torch.zeros(3, 32)
    x[1, 0], x[2, 0] = torch.nan, torch.inf
    out = mxfp8(x)
    assert (out[0] == 0).all()
    assert out[1, 0].isnan()
    assert (out[1, 1:] == 0).all()
    assert out[2, 0] == 448


def test_within_simulated_an_mxfp8_quantizer_works_on_a_cpu_without_a_maximum() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    with simulated():
        out = tensor_quant.dynamic_block_quantize_op(x, 32, None, 8, 4, 9, 8)
    assert torch.equal(out, mxfp8(x))


def test_within_simulated_a_block_quantizer_works_on_a_cpu() -> None:
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    with simulated():
        out = tensor_quant.dynamic_block_quantize_op(x, 16, x.abs().max(), 4, 2, 8, 4)
    assert torch.equal(out, nvfp4(x, x.abs().max()))


def test_simulated_is_undone_afterwards() -> None:
    before = tensor_quant.dynamic_block_quantize_op
    with simulated():
        assert tensor_quant.dynamic_block_quantize_op is not before
    assert tensor_quant.dynamic_block_quantize_op is before


def test_simulated_is_undone_after_an_exception() -> None:
    before = tensor_quant.dynamic_block_quantize_op
    with pytest.raises(RuntimeError, match="broken"), simulated():
        raise RuntimeError("broken")
    assert tensor_quant.dynamic_block_quantize_op is before


def test_simulated_nests() -> None:
    before = tensor_quant.dynamic_block_quantize_op
    x = torch.ones(16)
    with simulated():
        with simulated():
            pass
        tensor_quant.dynamic_block_quantize_op(x, 16, x.max(), 4, 2, 8, 4)
    assert tensor_quant.dynamic_block_quantize_op is before


@pytest.mark.parametrize("call", [(32, 8, 4, 8, 8), (16, 4, 2, 8, 8), (32, 4, 2, 8, 4)])
def test_another_block_format_is_refused_on_a_cpu(call: tuple[int, int, int, int, int]) -> None:
    block, *bits = call
    with simulated(), pytest.raises(ValueError, match=f"blocks of {block}"):
        tensor_quant.dynamic_block_quantize_op(torch.ones(32), block, torch.ones(()), *bits)
