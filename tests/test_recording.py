"""A search over recorded backbone inputs is modelopt's own over the pipeline, and what was recorded is what was called."""

import json
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import pytest
import torch
from safetensors.torch import load_file
from test_calibrate_once import differing, pipeline_loop, tensors
from tiny import STEPS, Bench, bench, call, recipe

from diffopt.errors import GateError
from diffopt.pipeline.open import open_pipeline
from diffopt.quantization.awq_svdquant import calibrate
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.extremes import quantizers
from diffopt.quantization.low_rank import Alternation
from diffopt.quantization.recorded_calls import CALLS, TENSORS, Calls, count, recorded, replay
from diffopt.quantization.weight_scales import Search

SIZE = 3
"""Prompts: a batch and half a one. A search runs the model a dozen times over each."""


def ordinary(b: Bench, name: str, steps: int) -> torch.nn.Module:
    """modelopt's own way: its forward loop runs the pipeline, two or three times."""

    def make(_: object) -> torch.nn.Module:
        pipe = open_pipeline(b.context(), b.pipeline())
        rules, algorithm = recipe(name)
        with torch.no_grad(), simulated():
            mtq.quantize(pipe.transformer, {"quant_cfg": rules, "algorithm": algorithm}, pipeline_loop(b, pipe, SIZE, steps))
        return pipe.transformer

    return b._once(("ordinary search", name, steps), make)


def searched(b: Bench, name: str, steps: int) -> torch.nn.Module:
    def make(_: object) -> torch.nn.Module:
        model = b.backbone()
        calibrate(model, *recipe(name), replay([r.path for r in b.recordings(SIZE, steps)]))
        return model

    return b._once(("searched", name, steps), make)


@pytest.mark.parametrize(
    ("name", "steps", "dtype"),
    [
        ("int4_awq", STEPS, "float32"),
        pytest.param("int4_awq", STEPS, "bfloat16", marks=pytest.mark.matrix),
        pytest.param("w4a8_awq", STEPS, "float32", marks=pytest.mark.matrix),
        pytest.param("nvfp4_svdquant", 1, "float32", marks=pytest.mark.matrix),
    ],
)
def test_a_search_over_recordings_gives_every_tensor_of_the_ordinary_loop(name: str, steps: int, dtype: str) -> None:
    b = bench(dtype)
    ours, theirs = searched(b, name, steps), ordinary(b, name, steps)
    assert differing(ours, theirs) == []
    for quantizer in (q for _, q in quantizers(theirs)):
        if hasattr(quantizer, "_svdquant_lora_b"):  # as mto.restore lays it: products have last bits of their own otherwise
            quantizer._svdquant_lora_a, quantizer._svdquant_lora_b = (
                x.contiguous() for x in (quantizer._svdquant_lora_a, quantizer._svdquant_lora_b)
            )
    assert torch.equal(call(ours, b.inputs(2)), call(theirs, b.inputs(2)))
    assert not torch.equal(call(ours, b.inputs(2)), call(b.backbone(), b.inputs(2)))


@pytest.mark.matrix
def test_over_several_steps_svdquant_differs_from_the_ordinary_loop_only_in_the_last_bits_of_input_maxima() -> None:
    # modelopt's last pass runs the changed model, whose outputs differ in their last bits: the pipeline feeds them back.
    ours, theirs = searched(bench(), "nvfp4_svdquant", STEPS), ordinary(bench(), "nvfp4_svdquant", STEPS)
    apart = differing(ours, theirs)
    assert all(n.endswith("input_quantizer._amax") for n in apart)
    both = dict(tensors(ours)), dict(tensors(theirs))
    for name in apart:
        torch.testing.assert_close(both[0][name], both[1][name], rtol=1e-4, atol=0)


@pytest.mark.parametrize("reached", ["a", "b"])
@pytest.mark.parametrize("name", ["int4_awq", "nvfp4_svdquant", "nvfp4_svdquant in turn"])
def test_a_layer_that_no_recorded_call_reaches_is_refused(name: str, reached: str) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(32, 32), "b": torch.nn.Linear(32, 32)})
    alternation = Alternation(2, Search("local_hessian", {reached: torch.eye(16).repeat(2, 1, 1)})) if "turn" in name else None
    rules, algorithm = recipe(name.split()[0])
    (other,) = {"a", "b"} - {reached}
    with pytest.raises(GateError, match=rf"nothing finite reached {other} "):
        calibrate(model, rules, algorithm, lambda m: m[reached](torch.rand(1, 32)), alternation=alternation)


@pytest.mark.parametrize("name", ["int4_awq", "w4a8_awq", "nvfp4_svdquant"])
def test_nan_in_calibration_is_refused(name: str) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(32, 32)})
    with pytest.raises(GateError, match=r"finite|NaN"):
        calibrate(model, *recipe(name), lambda m: m["a"](torch.full((1, 32), torch.nan)))


# What is kept.


class Backbone(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.seen: list[Any] = []

    def forward(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append((args, kwargs))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return type(one) is type(other) and one == other


def test_a_replayed_call_has_the_arguments_of_the_recorded_one(tmp_path: Path) -> None:
    arguments = {
        "tensor": torch.randn(3, 2),
        "strided": torch.randn(4, 6).T,
        "half": torch.randn(2).bfloat16(),
        "number": torch.tensor(5),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "nested": {"text_embeds": torch.randn(2), "more": [1, (2.5, None), [torch.ones(1)]]},
        "plain": None,
        "flag": False,
        "scale": 0.1,
        "name": "x",
    }
    backbone, again = Backbone(), Backbone()
    with recorded(backbone) as calls, torch.inference_mode():
        backbone(torch.ones(2), 7, **arguments)
        backbone()
    calls.save(tmp_path)
    replay([tmp_path])(again)
    assert same(again.seen, backbone.seen)


def test_equal_tensors_are_kept_once_and_others_apart(tmp_path: Path) -> None:
    calls = Calls()
    for x in (torch.zeros(4), torch.zeros(4), torch.zeros(2, 2), torch.zeros(4).half(), torch.zeros(2).double(), torch.ones(4)):
        calls.add("", [x], {})
    calls.save(tmp_path)
    assert len(load_file(tmp_path / TENSORS)) == 5
    assert count([tmp_path, tmp_path]) == 12


def test_a_tensor_that_is_changed_after_the_call_is_kept_as_it_was_called_with(tmp_path: Path) -> None:
    backbone, x = Backbone(), torch.ones(3)
    with recorded(backbone) as calls:
        backbone(x)
        x.mul_(2)
        backbone(x)
    assert [t.tolist() for t in calls.tensors.values()] == [[1.0] * 3, [2.0] * 3]


def test_of_several_backbones_the_one_that_was_called_is_called_again(tmp_path: Path) -> None:
    both = torch.nn.ModuleDict({"transformer": Backbone(), "transformer_2": Backbone()})
    with recorded(both) as calls:
        both["transformer_2"](1)
        both["transformer"](2)
        both["transformer_2"](3)
    calls.save(tmp_path)
    assert [c["part"] for c in json.loads((tmp_path / CALLS).read_text())] == ["transformer_2", "transformer", "transformer_2"]
    again = torch.nn.ModuleDict({"transformer": Backbone(), "transformer_2": Backbone()})
    replay([tmp_path])(again)
    assert [args for args, _ in again["transformer_2"].seen] == [(1,), (3,)]
    assert [args for args, _ in again["transformer"].seen] == [(2,)]


def test_recording_stops_with_its_block_and_leaves_the_output_alone() -> None:
    b = bench()
    model = b.backbone()
    with torch.no_grad():
        plain = model(**b.inputs(), return_dict=False)[0]
        with recorded(model) as calls:
            assert torch.equal(model(**b.inputs(), return_dict=False)[0], plain)
        model(**b.inputs(), return_dict=False)
    assert len(calls.calls) == 1


def test_an_argument_that_cannot_be_kept_is_named() -> None:
    backbone = Backbone()
    with recorded(backbone), pytest.raises(GateError, match=r"argument controls\.net .*got a Backbone"):
        backbone(controls={"net": backbone})


def test_a_recording_has_every_backbone_call_of_the_pipeline() -> None:
    b = bench()
    seen: list[dict[str, Any]] = []
    pipe = open_pipeline(b.context(), b.pipeline())
    pipe.transformer.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs), with_kwargs=True)
    pipeline_loop(b, pipe, SIZE)(pipe.transformer)
    again = Backbone()
    replay([r.path for r in b.recordings(SIZE)])(again)
    assert len(seen) == STEPS * 2
    assert all(same(ours, theirs) for (_, ours), theirs in zip(again.seen, seen, strict=True))
