"""A search over recorded backbone inputs is modelopt's own over the pipeline, and what was recorded is what was called."""

import modelopt.torch.quantization as mtq
import pytest
import torch
from test_calibrate_once import differing, pipeline_loop, tensors
from tiny import STEPS, Bench, bench, call, recipe

from diffopt.block_arithmetic import simulated
from diffopt.pipeline.open import open_pipeline
from diffopt.recording import replay
from diffopt.search import search

SEARCHED = ["int4_awq", "w4a8_awq", "nvfp4_svdquant"]


def ordinary(b: Bench, size: int, name: str, steps: int) -> torch.nn.Module:
    """modelopt's own way: its forward loop runs the pipeline, two or three times."""

    def make() -> torch.nn.Module:
        pipe = open_pipeline(b.context(), b.pipeline())
        rules, algorithm = recipe(name)
        with torch.no_grad(), simulated():
            mtq.quantize(pipe.transformer, {"quant_cfg": rules, "algorithm": algorithm}, pipeline_loop(b, pipe, size, steps))
        return pipe.transformer

    return b._once(("ordinary search", size, name, steps), lambda _: make())


def searched(b: Bench, size: int, name: str, steps: int) -> torch.nn.Module:
    def make() -> torch.nn.Module:
        model = b.backbone()
        search(model, *recipe(name), replay([r.path for r in b.recordings(size, steps)]))
        return model

    return b._once(("searched", size, name, steps), lambda _: make())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "steps"), [("int4_awq", STEPS), ("w4a8_awq", STEPS), ("nvfp4_svdquant", 1)])
def test_a_search_over_recordings_gives_every_tensor_of_the_ordinary_loop(name: str, steps: int, dtype: str) -> None:
    b = bench(dtype)
    ours, theirs = searched(b, 7, name, steps), ordinary(b, 7, name, steps)
    assert differing(ours, theirs) == []
    assert torch.equal(call(ours, b.inputs(2)), call(theirs, b.inputs(2)))
    assert not torch.equal(call(ours, b.inputs(2)), call(b.backbone(), b.inputs(2)))


def test_over_several_steps_svdquant_differs_from_the_ordinary_loop_only_in_the_last_bits_of_input_maxima() -> None:
    # modelopt's last pass runs the changed model, whose outputs differ in their last bits: the pipeline feeds them back.
    ours, theirs = searched(bench(), 7, "nvfp4_svdquant", STEPS), ordinary(bench(), 7, "nvfp4_svdquant", STEPS)
    apart = differing(ours, theirs)
    assert all(n.endswith("input_quantizer._amax") for n in apart)
    both = dict(tensors(ours)), dict(tensors(theirs))
    for name in apart:
        torch.testing.assert_close(both[0][name], both[1][name], rtol=1e-4, atol=0)
