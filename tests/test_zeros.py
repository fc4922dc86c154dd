"""A layer that is all zeros, in its weights or in what reaches it, is named with what to do, in every format."""

from typing import Any

import pytest
import torch
from test_simulation import NAMES
from tiny import BATCH, CHUNK, LAYERS, ONE, SEED, STEPS, Bench, bench, call, folder, prompt_set
from tiny_pipelines import TINY

from diffopt.errors import GateError
from diffopt.files.sensitivity import SensitivityFile
from diffopt.groups.sense import SensedPromptsView, SenseView
from diffopt.quantization import checkpoint
from diffopt.quantization.folding import fold
from diffopt.stages.sense import sense

ZERO, AFTER = "transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2"
"""The second one sees what a GELU makes of the first one's output: zeros."""
DYNAMIC = "mxfp8"


def zeroed(name: str = ZERO) -> Bench:
    torch.manual_seed(0)
    pipe, where, like = TINY["flux"].make(**ONE), folder(), bench()
    layer = pipe.transformer.get_submodule(name)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    pipe.save_pretrained(where)
    return Bench(folder(), str(where), call=like.call, prompts=like.prompts)


@pytest.fixture(scope="module")
def b() -> Bench:
    return zeroed()


def lines(b: Bench, name: str, **kw: Any) -> list[str]:
    with pytest.raises(GateError) as caught:
        b.checkpoint(name, **kw)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", [n for n in NAMES if n != DYNAMIC])
def test_zero_weights_are_told_to_be_excluded_in_one_line(b: Bench, name: str) -> None:
    first, *rest = lines(b, name)
    assert first == f"quantize: every weight is zero in {ZERO} (got 1 such layer); add {ZERO} to format.exclude"
    assert all(x.startswith("quantize: calibration saw nothing but zeros enter ") for x in rest)
    assert "tensor" not in "".join([first, *rest])


@pytest.mark.parametrize("name", [n for n in NAMES if n not in (DYNAMIC, "int4_awq")])
def test_an_input_of_zeros_is_told_to_be_excluded_too(b: Bench, name: str) -> None:
    assert lines(b, name, exclude=(ZERO,)) == [
        f"quantize: calibration saw nothing but zeros enter {AFTER} (got 1 such layer); add {AFTER} to format.exclude"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_with_what_was_told_every_format_quantizes_the_rest(b: Bench, name: str) -> None:
    out = (ZERO, AFTER) if name != DYNAMIC else ()
    model = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name, exclude=out))
    assert {ZERO, AFTER}.isdisjoint(checkpoint.quantized_layers(model)) == (name != DYNAMIC)
    fold(model)
    assert not model.get_submodule(ZERO).weight.any()  # a format without scales has zeros exactly
    assert torch.isfinite(call(model, b.inputs(1))).all()


def test_an_operand_of_attention_that_is_zero_names_its_attention() -> None:
    attention = "single_transformer_blocks.0.attn"
    found = lines(zeroed(f"{attention}.to_v"), "fp8", mha=True, exclude=(f"{attention}.to_v",))
    assert found == [
        f"quantize: calibration saw nothing but zeros enter {attention} (got 1 such layer); add {attention} to format.exclude"
    ]


def test_a_sensitivity_leaves_out_what_is_zero(b: Bench) -> None:
    context = b.context()
    view = SensedPromptsView(prompts=prompt_set(b.prompts[:CHUNK]), batch_size=BATCH, chunk=CHUNK, n_steps=STEPS, alpha=0.5)
    given = SenseView(formats=["int8_sq", "fp8"]), view, b.pipeline(), b.stats(CHUNK), (b.texts(0, CHUNK),)
    sense.run(context, b.call, *given, SEED)
    found = {x.name for x in SensitivityFile.read(context.out).layers}
    assert len(found) == LAYERS - 2
    assert {ZERO, AFTER}.isdisjoint(found)
