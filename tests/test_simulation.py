"""A simulated backbone made cheap: weights rounded once, inputs rounded by plain torch, bit for bit what modelopt computes."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny import Bench, bench, call

from diffopt import models
from diffopt.quantization import checkpoint
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.extremes import quantizers
from diffopt.quantization.folding import fold
from diffopt.quantization.rounding import Fp8Rounding, Int8Rounding, rounding
from diffopt.quantization.traceable import traceable
from diffopt.runtimes import RUNTIMES
from diffopt.runtimes import torch as torch_runtime

NAMES = ("fp8", "int8", "int8_sq", "int4_awq", "w4a8_awq", "nvfp4", "nvfp4_svdquant", "mxfp8")
WITH_ATTENTION = ("fp8", "nvfp4")
FAMILIES = ("flux", "sdxl")


def of(family: str) -> Bench:
    return bench() if family == "flux" else bench(family=family)


def inputs_of(b: Bench) -> dict[str, Any]:
    return models.family(b.family).call(b.inputs(2))


def restored(b: Bench, name: str, **kw: Any) -> Any:
    return checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name, **kw))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_folded_weights_and_plain_roundings_are_bit_equal_to_modelopts(family: str, name: str) -> None:
    b = of(family)
    inputs = inputs_of(b)
    model = restored(b, name)
    wanted = call(model, inputs)
    assert not torch.equal(wanted, call(b.backbone(), inputs))
    fold(model)
    assert checkpoint.quantized_layers(model) == []
    assert torch.equal(call(model, inputs), wanted)
    traceable(model)
    assert not [n for n, m in model.named_modules() if type(m).__module__.startswith("modelopt")]
    assert not [*quantizers(model)]
    assert torch.equal(call(model, inputs), wanted)


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_the_operands_of_attention_are_rounded_as_modelopt_rounds_them(name: str) -> None:
    b = bench()
    inputs = inputs_of(b)
    model = restored(b, name, mha=True)
    wanted = call(model, inputs)
    assert not torch.equal(wanted, call(restored(b, name), inputs))
    fold(model)
    traceable(model)
    assert torch.equal(call(model, inputs), wanted)


def test_attention_that_cannot_be_reached_leaves_the_model_as_it_is() -> None:
    b = bench(family="sdxl")
    inputs = inputs_of(b)
    model = restored(b, "fp8", mha=True)
    wanted = call(model, inputs)
    fold(model)
    with pytest.raises(ValueError, match="does not ask diffusers for its attention"):
        traceable(model)
    assert torch.equal(call(model, inputs), wanted)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_input_quantizer_is_bit_equal_to_its_rounding_on_numbers_of_every_size(name: str, dtype: torch.dtype) -> None:
    model = restored(bench(), name)
    draw = torch.Generator().manual_seed(len(name))
    for key, quantizer in quantizers(model):
        layer = model.get_submodule(key.rpartition(".")[0])
        if not key.endswith("input_quantizer") or not isinstance(layer, torch.nn.Linear):
            continue
        own = rounding(quantizer)
        peak = 1.0 if quantizer.is_mx_format or quantizer.amax is None else float(quantizer.amax.max())
        x = torch.randn(5, layer.in_features, generator=draw) * torch.exp(4 * torch.randn(5, 1, generator=draw)) * peak
        x[0] = 0
        x = x.clamp(-6e4, 6e4).to(dtype)
        with simulated():
            wanted = quantizer(x)
        found = x if own is None else own(x)
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted), key


@pytest.mark.parametrize("amax", [0.0, 1e-9, 1 / (1 << 24)])
def test_no_amax_is_as_modelopt_takes_it(amax: float) -> None:
    from modelopt.torch.quantization.tensor_quant import fake_tensor_quant, scaled_e4m3

    x, peak = torch.randn(4, 8), torch.tensor(amax)
    assert torch.equal(Fp8Rounding(None, peak)(x), scaled_e4m3(x, peak, None, 4, 3))
    assert torch.equal(Int8Rounding(None, peak, narrow=False)(x), fake_tensor_quant(x, peak, None, 8, False, False))


@pytest.mark.parametrize("name", NAMES)
def test_a_block_is_compiled_without_a_break(name: str) -> None:
    b = bench()
    mha = name in WITH_ATTENTION
    inputs = inputs_of(b)
    model = restored(b, name, mha=mha)
    wanted = call(model, inputs)
    fold(model)
    traceable(model)
    torch._dynamo.reset()
    model.compile(backend="eager", fullgraph=True)
    assert torch.equal(call(model, inputs), wanted)


def test_query_key_and_value_share_a_rounding_where_it_is_the_same() -> None:
    for name, shares in (("fp8", True), ("nvfp4", True), ("int8_sq", False)):  # SmoothQuant gives each its own scales
        model = restored(bench(), name)
        fold(model)
        traceable(model)
        attn = model.transformer_blocks[0].attn
        assert (attn.to_q.entering is attn.to_k.entering is attn.to_v.entering) == shares
        assert attn.to_q.entering is not attn.add_q_proj.entering


def test_layers_of_a_kind_share_what_is_compiled() -> None:
    b = bench()
    model = restored(b, "fp8", mha=True)
    fold(model)
    traceable(model)
    assert len({type(m) for m in model.modules() if hasattr(m, "entering")}) == 1
    processors = [m.processor for m in model.modules() if hasattr(m, "rounded_operands")]
    assert len(processors) == 2
    assert len({type(p).__call__ for p in processors}) == 1


@pytest.mark.parametrize("name", ["fp8", "nvfp4"])
def test_the_torch_runtime_draws_what_it_drew_when_weights_were_rounded_in_every_call(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    b, drawn = bench(), []
    for folding in (fold, lambda *_: None):
        monkeypatch.setattr(torch_runtime, "fold", folding)
        with RUNTIMES["torch"].running(b.context(), b.pipeline(), b.checkpoint(name), None, texts=True) as run:
            drawn.append(b.draw(run.pipe, ["apple", "pear"], [1, 2], 2))
            on = [n for n, m in run.pipe.transformer.named_modules() if n.endswith("weight_quantizer") and m.is_enabled]
            assert bool(on) == (folding is not fold)
    assert np.array_equal(*drawn)


def test_a_gpu_keys_what_it_simulates_and_nothing_else(plan: Any) -> None:
    def steps(*overrides: str, probe: Any) -> dict[str, str]:
        return {s.name: s.fingerprint for s in plan(*overrides, probes={"simulation": probe}).steps}

    simulated, full = (
        ("+recipe=emoji_fp8", "export=null"),
        ("+recipe=emoji_cache", "format=null", "calib=null", "eval.compare=[]"),
    )
    before, after = (steps(*simulated, probe=p) for p in (None, "compiled 1"))
    assert {n for n in before if before[n] != after[n]} == {"sample", "score"}
    assert steps(*full, probe=None) == steps(*full, probe="compiled 1")
