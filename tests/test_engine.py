"""Engine plans, built without a GPU by TensorRT-RTX where TensorRT is not installed."""

from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import some
from onnx import TensorProto, helper
from tiny import LAYERS, bench

from diffopt.artifact import EnginePlan
from diffopt.errors import GateError, PlanError
from diffopt.graph.engine import builder
from diffopt.graph.engine.options import Options
from diffopt.machine import environment
from diffopt.stages.build import BuilderView, build

pytestmark = pytest.mark.skipif(environment.tensorrt() is None, reason="no engine builder is installed")

GRAPHS = {
    "plain": (None, "float32", {}),
    "int8_sq": ("int8_sq", "float32", {}),
    "fp8": ("fp8", "float32", {}),
    "fp8-attention": ("fp8", "float16", {"mha": True}),
    "nvfp4": ("nvfp4", "float16", {}),
    "nvfp4-attention": ("nvfp4", "float16", {"mha": True}),
}

FAST = Options(level=0)


@cache
def planned(case: str, family: str | None = None) -> EnginePlan:
    b = bench(family=family)
    name, dtype, options = GRAPHS[case]
    context = b.context()
    build.run(context, BuilderView(builder_optimization_level=0), b.graph(name, dtype=dtype, **options))
    return EnginePlan(context.out, "plan")


@pytest.mark.parametrize("case", some(GRAPHS, ["fp8"]))
def test_a_plan_is_built_of_every_format(case: str) -> None:
    head, size = planned(case).json("plan.json"), (planned(case).path / "model.plan").stat().st_size
    assert size > 100_000
    assert head["bytes"] == size
    assert head["format"] == GRAPHS[case][0]
    assert head["profiles"] == []
    assert {"flavour": head["builder"], "version": head["version"]} == environment.tensorrt()


@pytest.mark.matrix
def test_a_plan_of_an_int8_graph_holds_weights_of_8_bits() -> None:
    b = bench(family="flux")
    backbone = b.backbone()
    weights = sum(backbone.get_submodule(n).weight.numel() for n in b.checkpoint("int8_sq").json("checkpoint.json")["layers"])
    saved = planned("plain", "flux").json("plan.json")["bytes"] - planned("int8_sq", "flux").json("plan.json")["bytes"]
    assert saved > 0.8 * 3 * weights


def write(path: Path, nodes: list[onnx.NodeProto], shape: list[int | str]) -> Path:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_a_dynamic_axis_is_fixed_by_a_profile(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", [helper.make_node("Relu", ["x"], ["y"])], ["batch", 4])
    assert builder.build(path, FAST).profiles == [{"x": {"min": [1, 4], "opt": [1, 4], "max": [1, 4]}}]


def test_a_profile_says_which_shapes_a_plan_takes(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", [helper.make_node("Relu", ["x"], ["y"])], ["batch", 4])
    asked = {"x": {"min": [2, 4], "opt": [8, 4], "max": [16, 4]}}
    assert builder.build(path, FAST, asked).profiles == [asked]


def test_a_profile_of_other_static_axes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", [helper.make_node("Relu", ["x"], ["y"])], ["batch", 4])
    shapes = {"min": [2, 5], "opt": [2, 5], "max": [2, 5]}
    with pytest.raises(GateError, match="build: "):
        builder.build(path, FAST, {"x": shapes})


@pytest.mark.matrix
def test_a_graph_with_a_dynamic_batch_is_built_from_one_row_to_its_most() -> None:
    b = bench()
    context, g = b.context(), b.graph("int8_sq", batch=2, most=4)
    build.run(context, BuilderView(builder_optimization_level=0), g)
    (profile,) = EnginePlan(context.out, "plan").json("plan.json")["profiles"]
    assert profile.keys() == b.inputs().keys() - {"img_ids", "txt_ids"}
    for name, shapes in profile.items():
        rows = {k: b.inputs(n)[name].shape for k, n in (("min", 1), ("opt", 2), ("max", 4))}
        assert shapes == {k: list(s) for k, s in rows.items()}


def refused(path: Path) -> str:
    with pytest.raises(GateError) as raised:
        builder.build(path, FAST)
    return str(raised.value)


def test_an_operator_that_the_builder_lacks_is_refused_by_its_node_and_module(tmp_path: Path) -> None:
    node = helper.make_node("Nonsense", ["x"], ["y"], name="/backbone/transformer_blocks.0/attn/Nonsense")
    said = refused(write(tmp_path / "model.onnx", [node], [2, 4]))
    assert (
        "has no operator Nonsense (got node /backbone/transformer_blocks.0/attn/Nonsense, of transformer_blocks.0.attn)" in said
    )
    assert "\n" not in said


def test_types_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Add", ["x", "half"], ["y"], name="/backbone/x_embedder/Add"),
    ]
    said = refused(write(tmp_path / "model.onnx", nodes, [2, 4]))
    assert "does not take node /backbone/x_embedder/Add, of x_embedder (got Add: " in said
    assert "must have same input types" in said
    assert "\n" not in said


def test_a_file_that_is_no_graph_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x00garbage" * 100)
    said = refused(tmp_path / "model.onnx")
    assert said.startswith("build: ")
    assert "(got )" not in said
    assert "\n" not in said


def test_without_a_builder_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "tensorrt", lambda: None)
    with pytest.raises(PlanError, match="pip install"):
        builder.build(tmp_path / "model.onnx", FAST)


# what is in a plan


def counted(case: str) -> dict[str, int]:
    return dict(planned(case).json("plan.json")["products"])


@pytest.mark.parametrize(
    ("case", "low"), some([("int8_sq", "INT8"), ("fp8", "FP8"), ("nvfp4", "FP4")], [("int8_sq", "INT8"), ("fp8", "FP8")])
)
def test_every_quantized_product_of_a_graph_runs_in_its_format(case: str, low: str) -> None:
    assert counted(case)[low] == LAYERS
    assert planned(case).json("plan.json")["quantized_products"] == LAYERS


def test_a_plan_of_a_plain_graph_has_no_product_in_few_bits() -> None:
    assert counted("plain").keys() == {"FP32"}


@pytest.mark.matrix
def test_products_of_quantized_attention_run_in_fp8_too() -> None:
    assert counted("fp8-attention")["FP8"] > LAYERS


def test_a_plans_layers_stand_beside_it_with_the_types_of_their_operands() -> None:
    layers = planned("fp8").json("model.layers.json")
    (first,) = (x for x in layers if "/backbone/transformer_blocks.0/ff/net.2/MatMul" in x["nodes"] and x["kind"] == "gemm")
    assert [t["type"] for t in first["inputs"]] == ["FP8"]
    assert "FP8" in {t["type"] for t in first["weights"]}


def test_a_plan_that_multiplies_in_full_precision_alone_is_no_plan_of_its_format(monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()
    plain = b.graph(None)
    whole = builder.build

    def full(graph: Path, options: Options, profile: Any) -> builder.Built:
        return whole(plain.path / graph.name, options, profile)

    monkeypatch.setattr(builder, "build", full)
    with pytest.raises(
        GateError, match=f"no matrix product in fp8, though {LAYERS} of the graph are quantized .got [0-9]+ in FP32"
    ):
        build.run(b.context(), BuilderView(builder_optimization_level=0), b.graph("fp8"))


def test_a_plan_names_the_gpus_that_have_its_format() -> None:
    assert planned("fp8").json("plan.json")["capabilities"] == ["8.9", "12.0"]
    assert planned("int8_sq").json("plan.json")["capabilities"] == ["8.0", "8.6", "8.9", "12.0"]
    assert planned("fp8").json("plan.json")["target"] == "any GPU of compute capability 8.9, 12.0"
