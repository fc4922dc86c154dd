"""On a GPU: folded weights and plain roundings beside modelopt's kernels, and what a compiler makes of them.

Prints what it measures: run with `-s`.
"""

from typing import Any

import pytest
import torch
from test_simulation import NAMES, WITH_ATTENTION, inputs_of
from tiny import Bench, bench, call

from diffopt.quantization import checkpoint
from diffopt.quantization.extremes import quantizers
from diffopt.quantization.folding import fold
from diffopt.quantization.rounding import Rounding, rounding
from diffopt.quantization.traceable import traceable
from diffopt.runtimes.compiled import compile_blocks

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

STEPPED = {"nvfp4", "nvfp4_svdquant"}
"""Their kernel divides to within 2 units of the last place, so a few numbers near the middle of two codes take the other."""
SHARE, OFF = 2e-3, 0.02
"""Of numbers that are rounded otherwise, at most; relative error of a layer's input."""


def on_gpu(family: str = "flux") -> Bench:
    return bench("bfloat16", device="cuda", family=None if family == "flux" else family)


def restored(b: Bench, name: str, **kw: Any) -> Any:
    return checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name, **kw))


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert found.isfinite().all()
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def pairs(name: str) -> list[tuple[str, Any, Rounding, torch.Tensor]]:
    """Of every kind of input in the blocks: its name, modelopt's quantizer, ours, and numbers of every size."""
    model, found = restored(on_gpu(), name), {}
    draw = torch.Generator("cuda").manual_seed(0)
    for key, quantizer in quantizers(model):
        layer: Any = model.get_submodule(key.rpartition(".")[0])
        if not key.endswith("input_quantizer") or not isinstance(layer, torch.nn.Linear):
            continue
        if (own := rounding(quantizer)) is not None:
            peak = 1.0 if quantizer.is_mx_format or quantizer.amax is None else float(quantizer.amax.max())
            x = torch.randn(65, layer.in_features, generator=draw, device="cuda")
            x *= torch.exp(2 * torch.randn(65, 1, generator=draw, device="cuda")) * peak / 4
            found[layer.in_features] = (key, quantizer, own, x.bfloat16())
    return list(found.values())


@pytest.mark.parametrize("name", NAMES)
def test_plain_roundings_are_those_of_modelopts_kernels(name: str) -> None:
    for key, quantizer, own, x in pairs(name):
        wanted, found = quantizer(x), own(x)
        other = float((wanted != found).float().mean())
        print(f"\n{name} {key}: {other:.2e} of the numbers otherwise, off by {off(found, wanted):.2e}")
        assert other <= (SHARE if name in STEPPED else 0), key


@pytest.mark.parametrize("name", NAMES)
def test_compiled_roundings_are_those_of_eager_ones_but_for_few_numbers(name: str) -> None:
    for key, _, own, x in pairs(name):
        torch._dynamo.reset()
        wanted, found = own(x), torch.compile(own, fullgraph=True)(x)
        other = float((wanted != found).float().mean())
        print(f"\n{name} {key}: compiled {other:.2e} of the numbers otherwise, off by {off(found, wanted):.2e}")
        assert other <= SHARE, key
        assert off(found, wanted) < OFF, key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["flux", "sdxl"])
def test_folding_changes_nothing(family: str, name: str) -> None:
    b = on_gpu(family)
    inputs = inputs_of(b)
    model = restored(b, name)
    wanted = call(model, inputs)
    fold(model, "cuda")
    assert torch.equal(call(model, inputs), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_of_compiled_blocks_is_near_the_one_that_modelopt_simulates(name: str) -> None:
    b = on_gpu()
    inputs = inputs_of(b)
    with torch.no_grad():
        plain = b.backbone()(**inputs, return_dict=False)[0]
    model = restored(b, name, mha=name in WITH_ATTENTION)
    wanted = call(model, inputs)
    fold(model, "cuda")
    traceable(model)
    eager = call(model, inputs)
    torch._dynamo.reset()
    compile_blocks(model, ("transformer_blocks", "single_transformer_blocks"))
    found = call(model, inputs)
    print(
        f"\n{name}: eager off by {off(eager, wanted):.2e}, compiled by {off(found, wanted):.2e} from modelopt's, "
        f"which is {off(wanted, plain):.2e} from full precision"
    )
    # A code that rounds otherwise spreads, up to the error of the format itself, which is far below that of a wrong scale.
    assert off(eager, wanted) < max(OFF, 1.5 * off(wanted, plain))
    assert off(found, wanted) < max(OFF, 1.5 * off(wanted, plain))
