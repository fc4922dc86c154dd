"""What is said of engine plans without a builder: where they can be used, the command that builds them, their layers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from contents import PLAN

from diffopt.files.plan import EnginePlanFile
from diffopt.graph.engine import command, layers, timing_cache
from diffopt.graph.engine.log import BuilderLog
from diffopt.graph.engine.options import Options
from diffopt.graph.engine.validity import unusable

ADA = {"name": "RTX 4090", "capability": "8.9"}
HERE = {"tensorrt": {"flavour": "tensorrt_rtx", "version": "1.7.1"}}


def plan(**more: Any) -> EnginePlanFile:
    return EnginePlanFile.of(PLAN | {"capabilities": ["8.9", "12.0"]} | more)


# where it can be used


def test_a_plan_for_this_builder_and_gpu_can_be_used() -> None:
    assert unusable(plan(), HERE, [ADA]) is None


@pytest.mark.parametrize("capability", ["12.0", "12.1"])
def test_a_plan_for_a_generation_runs_on_its_later_members(capability: str) -> None:
    assert unusable(plan(), HERE, [ADA | {"capability": capability}]) is None


@pytest.mark.parametrize("capability", ["8.6", "9.0", "10.0"])
def test_a_plan_for_other_gpus_says_which(capability: str) -> None:
    said = unusable(plan(), HERE, [ADA | {"capability": capability}])
    assert said
    assert "any GPU of 8.9" in said
    assert f"RTX 4090 of {capability}" in said


def test_a_plan_of_another_version_says_both() -> None:
    said = unusable(plan(), {"tensorrt": {"flavour": "tensorrt_rtx", "version": "1.8.0"}}, [ADA])
    assert said
    assert "got tensorrt_rtx 1.7.1, here tensorrt_rtx 1.8.0" in said


def test_a_plan_of_another_flavour_says_both() -> None:
    said = unusable(plan(), {"tensorrt": {"flavour": "tensorrt", "version": "1.7.1", "gpu": "x"}}, [ADA])
    assert said
    assert "here tensorrt 1.7.1" in said


def test_a_plan_of_a_builder_that_is_not_installed_says_so() -> None:
    assert "tensorrt_rtx is not installed" in str(unusable(plan(), {"tensorrt": None}, [ADA]))


def test_a_plan_without_a_gpu_says_what_it_is_for() -> None:
    assert "a plan runs on a GPU (got none); it is for any GPU of 8.9" in str(unusable(plan(), HERE, []))


def test_tensorrts_plan_is_for_the_gpu_that_built_it() -> None:
    made = plan(builder="tensorrt", version="11.4", capabilities=[], gpu="H100 sm9.0")
    here = {"tensorrt": {"flavour": "tensorrt", "version": "11.4", "gpu": "H100 sm9.0"}}
    assert unusable(made, here, [{"name": "H100", "capability": "9.0"}]) is None
    assert "got H100 sm9.0, here H200 sm9.0" in str(unusable(made, here, [{"name": "H200", "capability": "9.0"}]))


# the command


def said(flavour: str, version: str, **more: Any) -> str:
    return command.line(flavour, version, Options(3, **more), Path("model.onnx"), Path("model.plan"), None)


def test_the_command_names_no_precision() -> None:
    for flavour, version in (("tensorrt", "10.16"), ("tensorrt", "11.4"), ("tensorrt_rtx", "1.7.1")):
        assert not {"--fp16", "--bf16", "--int8", "--fp8", "--best"} & {*said(flavour, version).split()}


def test_the_command_asks_for_strong_types_where_the_version_does_not_take_them_for_granted() -> None:
    assert "--stronglyTyped" in said("tensorrt", "10.16.1")
    assert "--stronglyTyped" not in said("tensorrt", "11.4.1")
    assert said("tensorrt_rtx", "1.7.1.116").startswith("tensorrt_rtx --onnx=model.onnx --saveEngine=model.plan")
    assert "--stronglyTyped" not in said("tensorrt_rtx", "1.7.1.116")


def test_the_command_has_the_plans_options_and_shapes() -> None:
    options = Options(5, refit=True, weight_streaming=True, workspace=2 << 30)
    shapes = {"x": {"min": [1, 4], "opt": [2, 4], "max": [8, 4]}, "t": {"min": [1], "opt": [2], "max": [8]}}
    words = command.line("tensorrt", "11.4", options, Path("a b.onnx"), Path("m.plan"), shapes).split(" --")
    assert {"refit", "allowWeightStreaming", "memPoolSize=workspace:2048M", "builderOptimizationLevel=5"} <= {*words}
    assert {"minShapes=x:1x4,t:1", "optShapes=x:2x4,t:2", "maxShapes=x:8x4,t:8"} <= {*words}
    assert "'--onnx=a b.onnx'" in command.line("tensorrt", "11.4", options, Path("a b.onnx"), Path("m.plan"), None)


# its layers

X = "Name: x, Dimensions: [1,64], Format/Datatype: Int8"
GEMM = (
    f"Name: /backbone/a/MatMul_myl0_1, LayerType: gemm, Inputs: [ {{ {X} }}, "
    "{ Name: scale, Dimensions: [1], Format/Datatype: Float }], "
    "Constants: [ { Name: w, Dimensions: [64,32], Format/Datatype: Int8 }], "
    "Outputs: [ { Name: y, Dimensions: [1,32], Format/Datatype: Half }], TacticName: sm89_xmma_i8, StreamId: 0, "
    "Metadata: [ONNX Layer: /backbone/a/MatMul][ONNX Layer: /backbone/a/Add]"
)
CONV = (
    "Name: conv, LayerType: CaskConvolution, "
    "Inputs: [ { Name: y, Location: Device, Dimensions: [1,32,8,8], Format/Datatype: Row major Int8 format }], "
    "Outputs: [ { Name: z, Location: Device, Dimensions: [1,32,8,8], Format/Datatype: Row major linear FP16 format }], "
    "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: /backbone/b/Conv]"
)
COMPILED = f"Layers:\n{GEMM}\nName: wait_1, LayerType: wait, Inputs: [], StreamId: 1\n{CONV}\n\nBindings:\nx"
"""In the words of TensorRT 10, of which the second kind is of its own kernels (NVIDIA/TensorRT issues 4397 and 4020)."""


def test_layers_are_read_in_the_words_of_tensorrt_too() -> None:
    gemm, conv = layers.read(COMPILED)
    assert [t.type for t in gemm.inputs] == ["INT8", "FP32"]
    assert (gemm.weights[0].shape, gemm.tactic, gemm.nodes) == (
        (64, 32),
        "sm89_xmma_i8",
        ("/backbone/a/MatMul", "/backbone/a/Add"),
    )
    assert (conv.inputs[0].type, conv.outputs[0].type) == ("INT8", "FP16")


def test_a_product_that_no_layer_runs_is_counted_as_folded() -> None:
    found = layers.products(layers.read(COMPILED), ["/backbone/a/MatMul", "/backbone/b/Conv", "/backbone/c/MatMul"])
    assert found.counts == {"INT8": 2, "folded": 1}


def test_products_of_low_weights_with_other_inputs_are_told_apart() -> None:
    listed = COMPILED.replace(X, X.replace("Int8", "Half"))
    found = layers.products(layers.read(listed), ["/backbone/a/MatMul"])
    assert found.counts == {"INT8 weights, FP16 inputs": 1}
    assert (found.low(inputs=False), found.low(inputs=True)) == (1, 0)


# what the builder says


def test_gpus_that_a_builder_gives_up_are_heard() -> None:
    logger = SimpleNamespace(
        ILogger=type("ILogger", (), {"__init__": lambda self: None, "Severity": SimpleNamespace(ERROR=1, INFO=3)})
    )
    told = BuilderLog(logger)
    told.sink.log(
        4, "(foreignNode) Warning: this engine will not be able to run on target(s): sm80, sm120, because of fp8_e4m3."
    )
    told.sink.log(1, "a real\nerror")
    told.sink.log(1, "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime")
    assert told.given_up == {"8.0", "12.0"}
    assert told.errors == ["a real error"]


class Timings:
    """The part of TensorRT's API that is used, which keeps what it was given."""

    __name__, __version__ = "tensorrt", "11.4"

    def __init__(self) -> None:
        self.given = b""

    def create_timing_cache(self, known: bytes) -> bytes:
        self.given = known
        return known

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> None:
        assert not ignore_mismatch

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.given + b"+")


def test_timings_are_kept_for_the_next_build_of_the_same_version_and_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(version: str = "11.4", gpu: str = "H100 sm9.0") -> bytes:
        monkeypatch.setattr(timing_cache, "device", lambda: gpu)
        trt = Timings()
        trt.__version__ = version
        timing_cache.opened(trt, trt, tmp_path / "timings").keep(trt)
        return trt.given

    assert [built(), built(), built(version="11.5"), built(gpu="H200 sm9.0"), built()] == [b"", b"+", b"", b"", b"++"]
    assert (tmp_path / "timings/tensorrt-11.4-H100-sm9.0.cache").read_bytes() == b"+++"


def test_tensorrt_rtx_has_no_timings(tmp_path: Path) -> None:
    trt = Timings()
    trt.__name__ = "tensorrt_rtx"  # type: ignore[misc]
    timing_cache.opened(trt, trt, tmp_path / "timings").keep(trt)
    assert not (tmp_path / "timings").exists()
