"""FLUX's fused blocks compute what their layers compute apart, and their Triton kernels compile for Hopper without a GPU."""

from typing import Any

import pytest
import torch
from tiny import Bench, bench

from diffopt.kernels import flux_ops
from diffopt.kernels.attention import Fp8Attention, by_torch
from diffopt.kernels.convert import convert
from diffopt.kernels.flux import Entering, FusedFeedForward, FusedProcessor, FusedSingleBlock
from diffopt.kernels.fp8 import Fp8Linear, JoinedFp8Linear, rounded
from diffopt.kernels.fuse import fuse
from diffopt.kernels.int8 import Int8Linear, JoinedInt8Linear
from diffopt.quantization import checkpoint

SAME = 1e-6
"""Relative, in FP32: sums and scales in another order."""
BF16, FP32, CODES, WHOLE = "*bf16", "*fp32", "*fp8e4nv", "*i8"


def off(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def pair(b: Bench, name: str, mha: bool) -> tuple[Any, Any]:
    apart, together = (checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name, mha=mha)) for _ in range(2))
    convert(apart)
    convert(together)
    fuse(together)
    return apart, together


def called(model: Any) -> torch.Tensor:
    torch.manual_seed(3)
    config = model.config
    given = {
        "hidden_states": torch.randn(2, 64, config.in_channels),
        "encoder_hidden_states": torch.randn(2, 16, config.joint_attention_dim),
        "pooled_projections": torch.randn(2, config.pooled_projection_dim),
        "timestep": torch.tensor([0.5, 0.5]),
        "img_ids": torch.stack(torch.meshgrid(torch.zeros(1), torch.arange(8.0), torch.arange(8.0), indexing="ij"), -1).view(
            64, 3
        ),
        "txt_ids": torch.zeros(16, 3),
    }
    if config.guidance_embeds:
        given["guidance"] = torch.tensor([3.5, 3.5])
    with torch.no_grad():
        found: torch.Tensor = model(**given, return_dict=False)[0]
    return found


@pytest.mark.parametrize("name", ["fp8", "int8", "int8_sq"])
def test_fused_blocks_compute_what_their_layers_do(name: str) -> None:
    apart, together = pair(bench(), name, mha=False)
    single, double = together.single_transformer_blocks[0], together.transformer_blocks[0]
    assert type(single) is FusedSingleBlock
    assert type(double.attn.processor) is FusedProcessor
    assert type(double.ff) is FusedFeedForward
    assert len(single.entering.layers) == (4 if name == "int8_sq" else 1)  # SmoothQuant's scales are each layer's own
    assert off(called(together), called(apart)) < SAME
    torch.manual_seed(1)
    width = apart.single_transformer_blocks[0].proj_out.weight.shape[0]
    x, text, temb = torch.randn(2, 9, width), torch.randn(2, 5, width), torch.randn(2, width)
    angles = torch.rand(14, single.attn.head_dim)
    for kind in ("transformer_blocks", "single_transformer_blocks"):
        with torch.no_grad():
            both = [getattr(m, kind)[0](x, text, temb, (angles.cos(), angles.sin())) for m in (together, apart)]
        for ours, theirs in zip(*both, strict=True):
            assert off(ours, theirs) < 1e-4  # a code that rounds otherwise is one of thousands


def test_attention_in_fp8_hands_codes_to_the_layers_that_follow() -> None:
    apart, together = pair(bench(), "fp8", mha=True)
    attention = together.transformer_blocks[0].attn
    scales = {
        float(x)
        for x in (attention.fp8_attention.output_scale, attention.to_out[0].input_scale, attention.to_add_out.input_scale)
    }
    assert len(scales) == 1
    assert float(attention.fp8_attention.scales[5]) == pytest.approx(1 / scales.pop())
    assert 0 < off(called(together), called(apart)) < 0.01  # its result is rounded by a shared scale, once


@pytest.mark.parametrize("codes", [True, False], ids=["fp8", "plain"])
def test_fp8_attention_is_the_attention_of_the_rounded_numbers(codes: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 33, 3, 32) for _ in range(3))
    layer = Fp8Attention(torch.stack([x.abs().max() for x in (q, k, v)]))
    heads = [(rounded(x, s).float() / s).transpose(1, 2) for x, s in zip((q, k, v), layer.inverse, strict=True)]
    exact = torch.nn.functional.scaled_dot_product_attention(*heads, scale=0.3).transpose(1, 2)
    found = layer(q, k, v, 0.3)
    assert found.dtype == torch.float8_e4m3fn
    assert off(layer.numbers(found, torch.float32), exact) < 0.04  # one rounding to E4M3
    given = [rounded(x, s) for x, s in zip((q, k, v), layer.inverse, strict=True)]
    assert torch.equal(by_torch(*given, layer.scales, 0.3).float(), found.float())


def test_layers_of_one_input_in_one_product_keep_their_scales() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 32)
    weights = [torch.randn(n, 32) * s for n, s in ((16, 1.0), (32, 0.01), (48, 7.0))]
    biases = [torch.randn(16), None, torch.randn(48)]
    eight = [Fp8Linear(w, b, w.abs().max(), x.abs().max()) for w, b in zip(weights, biases, strict=True)]
    whole = [Int8Linear(w, b, w.abs().amax(1, keepdim=True), x.abs().max()) for w, b in zip(weights, biases, strict=True)]
    for layers, joined in ((eight, JoinedFp8Linear), (whole, JoinedInt8Linear)):
        assert off(joined(layers)(x), torch.cat([layer(x) for layer in layers], -1)) < SAME


def test_layers_whose_inputs_are_rounded_differently_stay_apart() -> None:
    weight = torch.randn(16, 16)
    layers = [Fp8Linear(weight, None, weight.abs().max(), torch.tensor(amax)) for amax in (1.0, 2.0)]
    with pytest.raises(ValueError, match="different scales"):
        JoinedFp8Linear(layers)
    assert len(Entering(layers).layers) == 2


def test_gelu_as_a_sigmoid_is_its_approximation_by_tanh() -> None:
    x = torch.linspace(-9, 9, 4001)
    assert off(flux_ops._gelu(x), torch.nn.functional.gelu(x, approximate="tanh")) < SAME


def test_ip_adapters_are_refused_in_a_line() -> None:
    _, together = pair(bench(), "fp8", mha=False)
    block = together.single_transformer_blocks[0]
    x = torch.randn(1, 4, block.proj_out.weight.shape[0])
    with pytest.raises(ValueError, match=r"take no \['ip_hidden_states'\]"):
        block(x, x, x[:, 0], None, {"ip_hidden_states": [x]})


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], **options: int) -> int:
    """Compile a Triton kernel for Hopper; bytes of its machine code. No GPU is needed."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {n: types.get(n, "constexpr" if n in constants else "i32") for n in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs={(names.index(k),): v for k, v in constants.items()})
    return len(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"])


@pytest.mark.parametrize("codes", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("scaled", [True, False], ids=["joined", "apart"])
def test_the_kernel_of_heads_compiles_for_hopper(scaled: bool, codes: bool) -> None:
    from diffopt.kernels import flux_triton

    out = CODES if codes else BF16
    types = dict.fromkeys(("q", "k", "v", "q_added", "k_added", "v_added", "q_norm", "k_norm"), BF16)
    types |= dict.fromkeys(("q_columns", "k_columns", "v_columns", "cos", "sin", "inverse"), FP32)
    types |= dict.fromkeys(("q_out", "k_out", "v_out"), out) | {"eps": "fp32"}
    constants = {"SCALED": scaled, "CODES": codes, "CHANNELS": 128, "ROWS": 1, "HEADS": flux_triton.HEADS}
    assert compiled(flux_triton._heads, types, constants, num_warps=1) > 0


@pytest.mark.parametrize(("before", "smooth"), [(True, False), (False, True)], ids=["codes", "numbers"])
@pytest.mark.parametrize("integers", [True, False], ids=["int8", "fp8"])
def test_the_kernel_of_gelu_compiles_for_hopper(integers: bool, before: bool, smooth: bool) -> None:
    from diffopt.kernels import flux_triton

    out = WHOLE if integers else CODES
    types = {"product": BF16, "columns": FP32, "added": BF16, "smoothing": BF16, "inverse": FP32, "out": out}
    types["before"] = out if before else BF16
    constants = {
        "SCALED": True,
        "SMOOTH": smooth,
        "CODES": before,
        "INTEGERS": integers,
        "ROWS": flux_triton.DEEP,
        "BLOCK": 512,
    }
    assert compiled(flux_triton._gelu, types, constants, num_warps=4) > 0
