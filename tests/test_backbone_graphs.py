"""Graphs and engine plans of several families' backbones in several formats, with a static and a dynamic batch axis."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from backbones import BACKBONES, made
from conftest import some
from quantized import FORMATS, quantize

from diffopt.graph import write
from diffopt.graph.engine import builder
from diffopt.graph.engine.options import Options
from diffopt.machine import environment

families = pytest.mark.parametrize("family", BACKBONES)
BLOCK = "transformer_blocks.1"
UNUSED = {"qwen": [f"{BLOCK}.attn.to_add_out", f"{BLOCK}.txt_mlp.net.0.proj", f"{BLOCK}.txt_mlp.net.2"]}
"""The last block's text is dropped: of all families' layers, only those that make it are not in the graph."""
several = pytest.mark.parametrize("family", some(BACKBONES, ["flux", "sdxl", "qwen"]))
needs_builder = pytest.mark.skipif(environment.tensorrt() is None, reason="no engine builder is installed")
FAST = Options(level=0)
ROWS = (1, 2, 5)


@cache
def root() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="diffopt-tests-"))


@cache
def graph(family: str, name: str | None, dtype: torch.dtype, dynamic: bool) -> tuple[Path, write.Graph, torch.nn.Module, int]:
    """The file, what was counted, the backbone, and how many of its weights are quantized."""
    backbone, model = BACKBONES[family], made(family)
    inputs = backbone.inputs(2)
    layers = quantize(model, name, backbone.kinds, backbone.keep, lambda m: backbone.call(m, inputs)) if name else 0
    torch.nn.Module.to(model, dtype)
    inputs = {n: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for n, x in inputs.items()}
    path = root() / f"{family}-{name}-{str(dtype)[6:]}-{dynamic}" / "model.onnx"
    path.parent.mkdir()
    axes = backbone.batch_axes() if dynamic else None
    return path, write.write(model, inputs, path, 20, axes, backbone.arguments), model, layers


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def computed(path: Path, inputs: dict[str, Any]) -> np.ndarray:
    run = session(path)
    found: np.ndarray = run.run(None, {i.name: inputs[i.name].numpy() for i in run.get_inputs()})[0]
    return found


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def profile(family: str, low: int, best: int, high: int) -> dict[str, dict[str, list[int]]]:
    backbone = BACKBONES[family]
    extents = {"min": backbone.inputs(low), "opt": backbone.inputs(best), "max": backbone.inputs(high)}
    return {n: {k: list(x[n].shape) for k, x in extents.items()} for n in backbone.batch_axes()}


@pytest.mark.parametrize("family", some(BACKBONES, ["flux", "sdxl"]))
def test_a_graph_with_a_dynamic_batch_axis_computes_what_the_backbone_does(family: str) -> None:
    path, _, model, _ = graph(family, None, torch.float32, True)
    for rows in ROWS:
        inputs = BACKBONES[family].inputs(rows)
        assert apart(computed(path, inputs), BACKBONES[family].call(model, inputs).numpy()) < 1e-5, rows


@pytest.mark.parametrize("family", some(BACKBONES, ["flux", "sdxl"]))
def test_every_batch_axis_is_dynamic_and_nothing_else(family: str) -> None:
    path, *_ = graph(family, None, torch.float32, True)
    dynamic = {}
    for value in onnx.load(path, load_external_data=False).graph.input:
        axes = [i for i, d in enumerate(value.type.tensor_type.shape.dim) if d.dim_param]
        if axes:
            dynamic[value.name] = axes
    assert dynamic == {n: [a] for n, a in BACKBONES[family].batch_axes().items()}


@several
def test_every_quantized_layer_is_found_in_the_graph(family: str) -> None:
    _, found, _, layers = graph(family, "fp8", torch.float16, True)
    assert found.quantized_products == found.quantized_inputs == layers - len(found.unused) > 0


@several
def test_layers_that_nothing_reads_are_named(family: str) -> None:
    assert sorted(graph(family, "fp8", torch.float16, True)[1].unused) == UNUSED.get(family, [])


@pytest.mark.parametrize("family", some([f for f in BACKBONES if f != "sdxl"], ["flux"]))  # in a UNet single roundings cascade
def test_an_int8_graph_computes_what_the_quantized_backbone_does(family: str) -> None:
    path, _, model, layers = graph(family, "int8", torch.float32, False)
    inputs = BACKBONES[family].inputs(2)
    plain, theirs = BACKBONES[family].call(made(family), inputs).numpy(), BACKBONES[family].call(model, inputs).numpy()
    ours = computed(path, inputs)
    assert layers > 0
    assert apart(ours, theirs) < 0.1 * apart(theirs, plain)


class Convolution(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(16, 24, 3, padding=1)

    def forward(self, x: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (self.layer(x),)


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_a_quantized_convolution_in_a_graph_is_torchs(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Convolution(), torch.randn(2, 16, 8, 8)
    assert quantize(model, name, ("nn.Conv2d",), (), lambda m: m(x, False)) == 1
    found = write.write(model, {"x": x}, tmp_path / "model.onnx", 20)
    assert found.quantized_products == found.quantized_inputs == 1
    with torch.no_grad():
        assert apart(computed(tmp_path / "model.onnx", {"x": x}), model(x, False)[0].numpy()) < 1e-3


@needs_builder
@pytest.mark.parametrize(("name", "dynamic"), [("int8_sq", False), ("fp8", True)])
@families
@pytest.mark.matrix
def test_a_plan_is_built_of_every_family(family: str, name: str, dynamic: bool) -> None:
    path, *_ = graph(family, name, torch.float16, dynamic)
    asked = profile(family, 1, 2, 4) if dynamic else None
    built = builder.build(path, FAST, asked)
    assert len(built.plan) > 100_000
    assert built.profiles == ([asked] if dynamic else [])


INPUTS = {"int4_awq": 0}
"""Formats that quantize weights alone."""


@pytest.mark.parametrize("name", some(FORMATS, ["int8_sq", "nvfp4"]))
def test_every_format_is_found_in_the_graph(name: str) -> None:
    _, found, _, layers = graph("flux", name, torch.float16, False)
    assert found.quantized_products == layers > 0
    assert found.quantized_inputs == INPUTS.get(name, layers)


@pytest.mark.parametrize("name", some(FORMATS, ["int8_sq", "nvfp4"]))  # of all by the cells of test_matrix.py
def test_every_formats_graph_passes_onnxs_checker(name: str) -> None:
    path, found, *_ = graph("flux", name, torch.float16, False)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [o.version for o in model.opset_import if not o.domain] == [found.opset]


@needs_builder
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.matrix
def test_a_plan_is_built_of_every_format(name: str) -> None:
    path, *_ = graph("flux", name, torch.float16, False)
    assert len(builder.build(path, FAST).plan) > 100_000


@needs_builder
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("int8", torch.float32),
        ("fp8", torch.float32),
        ("nvfp4", torch.float32),
        ("fp8", torch.bfloat16),
        ("mxfp8", torch.bfloat16),
    ],
    ids=str,
)
@pytest.mark.matrix
def test_a_plan_is_built_in_other_precisions(name: str, dtype: torch.dtype) -> None:
    path, *_ = graph("flux", name, dtype, False)
    assert len(builder.build(path, FAST).plan) > 100_000


@needs_builder
@pytest.mark.matrix
@pytest.mark.parametrize("name", ["w4a8_awq", "nvfp4", "mxfp8"])
def test_a_plan_of_a_block_format_takes_a_dynamic_batch(name: str) -> None:
    path, *_ = graph("flux", name, torch.float16, True)
    assert builder.build(path, FAST, profile("flux", 1, 2, 4)).profiles == [profile("flux", 1, 2, 4)]
