"""The native runtime: real FP8 and INT8 layers compute what modelopt simulates, in any family."""

from typing import Any

import pytest
import torch
from tiny import Bench, bench

from diffopt.jobs import runtime_checks
from diffopt.kernels.capability import KIND
from diffopt.kernels.convert import convert
from diffopt.kernels.fp8 import Fp8Linear
from diffopt.kernels.int8 import Int8Linear
from diffopt.kernels.kernel import Kernel
from diffopt.quantization import checkpoint
from diffopt.quantization.block_fake_quant import simulated
from diffopt.runtimes import RUNTIMES

FORMATS = tuple(KIND)
CLOSE = 1e-5
"""Relative, in FP32: the codes are the same, and sums of products have other last bits. One code that rounds otherwise of the
thousands that an output is made of moves it by more, so that is allowed for by `ROUNDED`."""
ROUNDED = 2e-3


def pair(b: Bench, name: str) -> tuple[torch.nn.Module, torch.nn.Module, Any]:
    """The simulated backbone, the one with kernels, and what became of its layers."""
    fake, real = (checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name)) for _ in range(2))
    return fake, real, convert(real)


def linears(fake: torch.nn.Module) -> dict[str, Any]:
    on = {n: m for n, m in fake.named_modules() if getattr(getattr(m, "weight_quantizer", None), "is_enabled", False)}
    return {n: m for n, m in on.items() if isinstance(m, torch.nn.Linear)}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("family", ["flux", "sdxl"])
def test_every_layer_computes_what_is_simulated(family: str, name: str) -> None:
    b = bench() if family == "flux" else bench(family=family)
    fake, real, made = pair(b, name)
    layers = linears(fake)
    assert sum(made.kernels.values()) == len(layers) > 0
    torch.manual_seed(len(family) + len(name))
    with torch.no_grad(), simulated():
        for layer_name, layer in layers.items():
            peak = 1 if layer.input_quantizer.amax is None else layer.input_quantizer.amax.float()
            x = torch.randn(3, 9, layer.in_features) * peak / 2  # some are too large
            ours, theirs = real.get_submodule(layer_name)(x), layer(x)
            error = float((ours - theirs).norm() / theirs.norm())
            assert error < ROUNDED, f"{layer_name}: {error}"


def test_a_sum_of_products_is_that_of_the_codes() -> None:
    torch.manual_seed(0)
    weight, x, bias = torch.randn(48, 64), torch.randn(21, 64), torch.randn(48)
    for kernel, largest in (
        (Fp8Linear(weight, bias, weight.abs().max(), x.abs().max()), 448.0),
        (Int8Linear(weight, bias, weight.abs().amax(1, keepdim=True), x.abs().max()), 127.0),
    ):
        codes = (x.double() * (largest / x.abs().max().double())).float()
        codes = codes.to(torch.float8_e4m3fn) if largest == 448 else codes.round()
        scale = kernel.weight_scale.double() if largest == 448 else (weight.abs().amax(1).double() / largest)[:, None]
        exact = codes.double() * (x.abs().max().double() / largest) @ (kernel.weight.double() * scale).T + bias.double()
        assert float((kernel(x).double() - exact).norm() / exact.norm()) < CLOSE


def test_what_has_no_kernel_falls_back_and_is_named_with_the_reason() -> None:
    b = bench(family="sdxl")
    _, real, made = pair(b, "fp8")
    assert made.left
    assert all("convolution" in why for why in made.left.values())
    plain = b.backbone()
    for name in made.left:
        rounded, own = real.get_submodule(name).weight, plain.get_submodule(name).weight
        assert not torch.equal(rounded, own)
        assert len((rounded / rounded.abs().max() * 448).unique()) <= 253  # E4M3 has so many numbers


def test_lengths_that_the_fp8_product_does_not_take_fall_back() -> None:
    with pytest.raises(ValueError, match="its 24 inputs and 32 outputs are not multiples of 16"):
        Fp8Linear(torch.randn(32, 24), None, torch.tensor(1.0), torch.tensor(1.0))


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_of_modelopt_is_left_and_weights_take_a_byte(name: str) -> None:
    _, real, made = pair(bench(), name)
    assert not [n for n, m in real.named_modules() if "modelopt" in type(m).__module__]
    assert type(real).__module__.startswith("diffusers")
    kernels: list[Any] = [m for m in real.modules() if isinstance(m, Kernel)]
    assert len(kernels) == sum(made.kernels.values())
    assert {m.weight.element_size() for m in kernels} == {1}
    assert not {id(p) for m in kernels for p in m.parameters()}  # the full-precision weight is let go


def test_attention_that_was_to_be_in_fp8_is_counted() -> None:
    b = bench()
    fake = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("fp8", mha=True))
    assert len(convert(fake).attention) == 2  # a block of a kind


@pytest.mark.parametrize("name", FORMATS)
def test_pictures_are_those_that_are_simulated(name: str) -> None:
    b = bench()
    drawn = []
    for runtime in ("torch", "native"):
        with RUNTIMES[runtime].running(b.context(), b.pipeline(), b.checkpoint(name), None, texts=True) as run:
            made = run.pipe(
                "red apple", height=32, width=32, num_inference_steps=2, max_sequence_length=16, guidance_scale=0.0,
                generator=torch.Generator().manual_seed(1), output_type="pt",
            )  # fmt: skip
            drawn.append(made.images.float())
    assert float((drawn[0] - drawn[1]).abs().mean()) < 2e-3


def test_a_machine_without_kernels_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    old = [{"name": "NVIDIA A100", "capability": "8.0"}]
    assert runtime_checks._no_kernels("fp8", ()) == "native compiles kernels for an NVIDIA GPU, and there is none (got native)"
    assert runtime_checks._no_kernels("fp8", old) == "fp8 has kernels from compute capability 8.9 on (got NVIDIA A100 with 8.0)"
    assert runtime_checks._no_kernels("int8", old) is None
    assert runtime_checks._no_kernels(None, old) is None


def test_native_is_refused_without_a_gpu_in_one_line(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffopt.errors import PlanError

    monkeypatch.setattr(runtime_checks, "gpus", tuple)
    with pytest.raises(PlanError) as e:
        plan("+recipe=emoji_fp8", "eval.runtime=native")
    assert str(e.value) == (
        "eval.runtime: native compiles kernels for an NVIDIA GPU, and there is none (got native); "
        "set eval.runtime=torch, which simulates"
    )
