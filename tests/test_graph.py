"""ONNX graphs: quantized weights stored as such, numbers kept, counted, the same bytes every time."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import some
from onnx import numpy_helper
from tiny import EMOJI, LAYERS, TINY, Bench, bench, call, called, emoji, folder, saved

from diffopt.artifact import OnnxGraph
from diffopt.errors import GateError
from diffopt.graph import count, write
from diffopt.graph import file as graph_file
from diffopt.graph.trace import trace
from diffopt.groups import CallView
from diffopt.models.family import Size
from diffopt.models.flux import FAMILY
from diffopt.pipeline.open import open_pipeline
from diffopt.quantization import checkpoint

EVERY = {
    "plain": (None, "float32", False),
    "int8_sq": ("int8_sq", "float32", False),
    "int8_sq-half": ("int8_sq", "float16", False),
    "fp8": ("fp8", "float32", False),
    "fp8-attention": ("fp8", "float16", True),
    "nvfp4": ("nvfp4", "float16", False),
}
every = pytest.mark.parametrize(("name", "dtype", "mha"), EVERY.values(), ids=EVERY)


def graph(name: str | None, dtype: str = "float32", mha: bool = False) -> OnnxGraph:
    return bench().graph(name, dtype=dtype, **({"mha": True} if mha else {}))


def model(name: str | None, dtype: str = "float32", mha: bool = False) -> onnx.ModelProto:
    return onnx.load(graph(name, dtype, mha).path / "model.onnx")


def session(content: bytes | str) -> onnxruntime.InferenceSession:
    """With every optimisation off: what is computed is what is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def outputs(content: bytes | str, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    (out,) = session(content).run(None, {n: x.numpy() for n, x in inputs.items()})
    return out


def apart(ours: Any, theirs: Any) -> float:
    """Relative difference, by norms."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


NEAR = 5e-3
"""Relative difference of a graph's and the fake-quantized model's outputs; quantizing makes 2e-2 (INT8) to 5e-2 (FP8)."""


# Weights.


def quantized_weights(name: str) -> list[np.ndarray]:
    """The layers' weights in full precision, as the checkpoint's smoothing left them."""
    b = bench()
    backbone = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name))
    return [backbone.get_submodule(n).weight.detach().numpy() for n in checkpoint.quantized_layers(backbone)]


def floats(m: onnx.ModelProto) -> list[np.ndarray]:
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    constants = [n.attribute[0].t for n in m.graph.node if n.op_type == "Constant" and n.attribute[0].HasField("t")]
    return [numpy_helper.to_array(i) for i in (*m.graph.initializer, *constants) if i.data_type in kinds]


STORED = {"int8_sq": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN, "nvfp4": onnx.TensorProto.FLOAT4E2M1}


@pytest.mark.parametrize(("name", "dtype"), [("int8_sq", "float32"), ("fp8", "float32"), ("nvfp4", "float16")])
def test_every_quantized_weight_is_stored_in_its_format(name: str, dtype: str) -> None:
    stored = [tuple(sorted(i.dims)) for i in model(name, dtype).graph.initializer if i.data_type == STORED[name]]
    matrices = Counter(s for s in stored if len(s) == 2)
    assert matrices == Counter(tuple(sorted(w.shape)) for w in quantized_weights(name))


@pytest.mark.parametrize(("name", "dtype"), [("int8_sq", "float32"), ("fp8", "float32"), ("nvfp4", "float16")])
def test_no_copy_of_a_quantized_weight_is_left_in_full_precision(name: str, dtype: str) -> None:
    left = [a for a in floats(model(name, dtype)) if a.ndim == 2]
    for weight in quantized_weights(name):
        for form in (weight.astype(dtype), weight.T.astype(dtype)):
            assert not any(a.shape == form.shape and np.allclose(a, form, rtol=1e-2) for a in left)


def test_the_plain_graph_would_fail_the_search_for_copies() -> None:
    left = [a for a in floats(model(None)) if a.ndim == 2]
    backbone = bench().backbone()
    weight = backbone.get_submodule("transformer_blocks.0.ff.net.2").weight.detach().numpy()
    assert any(a.shape == form.shape and np.allclose(a, form) for a in left for form in (weight, weight.T))


def matrix_bytes(m: onnx.ModelProto) -> float:
    """Of the weights and their block scales. Biases, and the scales of rows, are vectors."""
    bits = {"FLOAT": 32, "FLOAT16": 16, "INT8": 8, "FLOAT8E4M3FN": 8, "FLOAT4E2M1": 4}
    tensors = [i for i in m.graph.initializer if len(i.dims) == 2]
    return sum(np.prod(i.dims) * bits[onnx.TensorProto.DataType.Name(i.data_type)] / 8 for i in tensors)


@pytest.mark.parametrize(
    ("name", "dtype", "bits"),
    [("int8_sq", "float32", 8), ("int8_sq", "float16", 8), ("fp8", "float32", 8), ("nvfp4", "float16", 4.5)],
)
def test_a_quantized_graph_takes_the_bits_of_its_format_per_weight(name: str, dtype: str, bits: float) -> None:
    weights = sum(w.size for w in quantized_weights(name))
    wide = 32 if dtype == "float32" else 16
    saved = matrix_bytes(model(None, dtype)) - matrix_bytes(model(name, dtype))
    assert saved == pytest.approx(weights * (wide - bits) / 8, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "dtype"), some([("int8_sq", "float32"), ("fp8", "float32"), ("nvfp4", "float16")], [("fp8", "float32")])
)
def test_the_file_of_a_quantized_graph_is_much_smaller(name: str, dtype: str) -> None:
    # Of the tiny model's file an eighth to a half is nodes, which do not shrink.
    b = bench(family="flux")
    ours, plain = ((b.graph(n, dtype=dtype).path / "model.onnx").stat().st_size for n in (name, None))
    assert ours < (0.5 if dtype == "float32" else 0.8) * plain


def test_the_int8_weights_are_those_that_the_checkpoint_computes_with() -> None:
    b = bench()
    backbone = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("int8_sq"))
    m = model("int8_sq")
    stored = {i.name: numpy_helper.to_array(i) for i in m.graph.initializer}
    found = []
    for node in m.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            axis = next(a.i for a in node.attribute if a.name == "axis")
            scale = stored[node.input[1]].reshape([-1 if i == axis else 1 for i in range(2)])
            found.append(stored[node.input[0]] * scale)
    assert len(found) == LAYERS
    for name in checkpoint.quantized_layers(backbone):
        layer = backbone.get_submodule(name)
        weight = layer.weight_quantizer(layer.weight).detach().numpy()
        # torch multiplies by 127 / amax and the graph divides by amax / 127: a near-tie may go the other way.
        off = [np.mean(~np.isclose(f, w, rtol=1e-6, atol=0)) for f in found for w in (weight, weight.T) if f.shape == w.shape]
        assert min(off) < 1e-3, name


# Filling in.


def test_a_graph_holds_nothing_that_no_node_reads() -> None:
    m = model("int8_sq")
    read = {name for n in m.graph.node for name in n.input} | {o.name for o in m.graph.output}
    assert not [i.name for i in m.graph.initializer if i.name not in read]


def test_the_parameters_are_no_inputs_of_the_finished_graph() -> None:
    assert [i.name for i in model("int8_sq").graph.input] == list(bench().inputs())


def test_an_exported_backbone_computes_as_before(tmp_path: Path) -> None:
    b = bench()
    backbone = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("int8_sq"))
    before = call(backbone, b.inputs())
    write.write(backbone, b.inputs(), tmp_path / "model.onnx", 20)
    assert torch.equal(call(backbone, b.inputs()), before)


def test_each_of_two_backbones_has_a_graph_that_computes_as_it_does() -> None:
    size = called(TINY["wan"].side, TINY["wan"].tokens, guidance_scale=3.0, frames=TINY["wan"].frames, long_prompts="cut")
    b = Bench(folder(), str(saved("wan", num_layers=1)), call=size, family="wan")
    path, inputs = b.graph(None).path, b.inputs()
    theirs = {name: call(backbone, inputs) for name, backbone in b.backbone().items()}
    assert apart(*theirs.values()) > 0.01
    for name, wanted in theirs.items():
        assert apart(outputs(str(path / name / "model.onnx"), inputs), wanted) < 1e-5


def test_quantized_weights_are_right_operands_of_products() -> None:
    # onnxruntime's integer kernels take neither a transposed weight nor a Gemm.
    m = model("int8_sq")
    made = {o: n for n in m.graph.node for o in n.output}
    fed = [n for n in m.graph.node if any(i in made and made[i].op_type == "DequantizeLinear" for i in n.input[1:2])]
    assert Counter(n.op_type for n in fed) == {"MatMul": LAYERS}


def test_two_layers_that_share_a_weight_share_it_in_the_graph(tmp_path: Path) -> None:
    b = bench(family="flux")
    backbone = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("int8_sq"))
    one, other = (backbone.single_transformer_blocks[i].attn.to_q for i in (0, 1))
    other.weight = one.weight
    other.weight_quantizer.amax = one.weight_quantizer.amax
    write.write(backbone, b.inputs(), tmp_path / "model.onnx", 20)
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))
    assert apart(outputs(str(tmp_path / "model.onnx"), b.inputs()), call(backbone, b.inputs())) < NEAR


# Counting.


@pytest.mark.parametrize(
    ("name", "dtype"), [("int8_sq", "float32"), ("int8_sq", "float16"), ("fp8", "float32"), ("nvfp4", "float16")]
)
def test_a_graph_quantizes_as_many_tensors_as_there_are_layers(name: str, dtype: str) -> None:
    found = graph(name, dtype).json("graph.json")
    assert found["quantized_layers"] == found["quantized_products"] == LAYERS
    assert sum(n for op, n in found["operators"].items() if op in count.QUANTIZE) == LAYERS


def test_an_int8_graph_dequantizes_each_layers_input_and_weight() -> None:
    assert graph("int8_sq").json("graph.json")["operators"] == {"QuantizeLinear": LAYERS, "DequantizeLinear": 2 * LAYERS}


def test_a_plain_graph_has_no_quantized_product() -> None:
    m = model(None)
    assert sum(n.op_type in count.MATRIX for n in m.graph.node) > LAYERS
    assert count.quantized_products(m) == 0
    assert count.operators(m) == {}


def test_excluded_layers_are_not_counted() -> None:
    found = bench().graph("int8_sq", exclude=("transformer_blocks.0",)).json("graph.json")
    assert found["quantized_layers"] == found["quantized_products"] == LAYERS - 14


def products(*chains: list[str], weighs: bool = True) -> onnx.ModelProto:
    """One MatMul of an input a and a constant b, both of which pass through the given operators."""
    nodes, ends = [], []
    for side, chain in zip("ab", chains, strict=True):
        name = side
        for i, op in enumerate(chain):
            extra = [f"{side}s"] if "Quantize" in op or "quantize" in op else []
            nodes.append(onnx.helper.make_node(op, [name, *extra], [f"{side}{i}"]))
            name = f"{side}{i}"
        ends.append(name)
    nodes.append(onnx.helper.make_node("MatMul", ends, ["out"]))
    weight = onnx.numpy_helper.from_array(np.zeros((2, 2), np.float32), "b" if weighs else "w")
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], [weight]))


PAIR = ["QuantizeLinear", "DequantizeLinear"]


@pytest.mark.parametrize(
    ("left", "right", "counted"),
    [
        (PAIR, ["DequantizeLinear"], 1),
        ([*PAIR, "Reshape"], ["DequantizeLinear", "Cast", "Transpose"], 1),
        (["TRT_FP8QuantizeLinear", "TRT_FP8DequantizeLinear"], PAIR, 1),
        (PAIR, [], 0),
        ([], ["DequantizeLinear"], 1),
        (PAIR, ["DequantizeLinear", "Softmax"], 0),
        (PAIR, ["QuantizeLinear"], 0),
        (PAIR, ["TRT_MXFP8DequantizeLinear", "Transpose"], 1),
    ],
)
def test_a_product_counts_when_its_weight_is_dequantized(left: list[str], right: list[str], counted: int) -> None:
    assert count.quantized_products(products(left, right)) == counted


@pytest.mark.parametrize(
    ("left", "right", "counted"),
    [(PAIR, ["DequantizeLinear"], 1), ([], ["DequantizeLinear"], 0), (PAIR, [], 0), ([*PAIR, "Softmax"], PAIR, 0)],
)
def test_its_input_counts_when_it_is_dequantized_too(left: list[str], right: list[str], counted: int) -> None:
    assert count.quantized_inputs(products(left, right)) == counted


def test_a_product_of_two_activations_is_no_layer() -> None:
    assert count.quantized_products(products(PAIR, PAIR, weighs=False)) == 0


# The file.


@every
def test_a_graph_passes_onnxs_checker(name: str | None, dtype: str, mha: bool) -> None:
    onnx.checker.check_model(model(name, dtype, mha))


@every
def test_only_operators_that_onnx_lacks_are_of_another_domain(name: str | None, dtype: str, mha: bool) -> None:
    custom = {(n.domain, n.op_type) for n in model(name, dtype, mha).graph.node if n.domain not in ("", "ai.onnx")}
    assert custom == ({("trt", "TRT_FP4DynamicQuantize")} if name == "nvfp4" else set())


@pytest.mark.parametrize(
    ("name", "dtype", "mha"),
    [pytest.param(*x, id=i, marks=[] if i in ("int8_sq", "nvfp4") else [pytest.mark.matrix]) for i, x in EVERY.items()],
)
def test_exporting_twice_gives_the_same_bytes(name: str | None, dtype: str, mha: bool) -> None:
    b, again = bench(), bench().context()
    b.write_graph(again, name, dtype=dtype, **({"mha": True} if mha else {}))
    first = graph(name, dtype, mha).path
    assert {f.name for f in again.out.iterdir()} == {f.name for f in first.iterdir()} == {"model.onnx", "graph.json"}
    for file in again.out.iterdir():
        assert file.read_bytes() == (first / file.name).read_bytes()


@every
def test_no_path_of_this_machine_is_in_the_files(name: str | None, dtype: str, mha: bool) -> None:
    path = graph(name, dtype, mha).path
    here = [str(Path(write.__file__).parent), os.path.dirname(torch.__file__), str(bench().root), "diffopt-tests-", "/tmp"]
    for file in path.iterdir():
        content = file.read_bytes()
        assert not [p for p in here if p.encode() in content]


@pytest.mark.matrix
def test_weights_of_more_than_two_gigabytes_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()
    backbone = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("int8_sq"))
    monkeypatch.setattr(graph_file, "LIMIT", 1)
    write.write(backbone, b.inputs(), tmp_path / "model.onnx", 20)
    assert {f.name for f in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    ours = outputs(str(tmp_path / "model.onnx"), b.inputs())
    assert np.array_equal(ours, outputs(str(graph("int8_sq").path / "model.onnx"), b.inputs()))


@pytest.mark.parametrize("opset", some([19, 20, 21], [21]))
def test_a_graph_is_of_the_opset_asked_for(opset: int) -> None:
    m = onnx.load(bench().graph("int8_sq", opset=opset).path / "model.onnx")
    assert [o.version for o in m.opset_import if o.domain in ("", "ai.onnx")] == [opset]


def test_the_graph_says_what_it_takes() -> None:
    inputs = graph("int8_sq").json("graph.json")["inputs"]
    types = {onnx.TensorProto.FLOAT: "float32"}
    taken = {
        i.name: {"shape": [d.dim_value for d in i.type.tensor_type.shape.dim], "dtype": types[i.type.tensor_type.elem_type]}
        for i in model("int8_sq").graph.input
    }
    assert taken == inputs


def test_a_plain_graph_computes_what_the_backbone_does() -> None:
    b = bench()
    inputs = {n: x * 0.5 if n == "hidden_states" else x for n, x in b.inputs().items()}  # not those it was traced with
    assert apart(outputs(str(graph(None).path / "model.onnx"), inputs), call(b.backbone(), inputs)) < 1e-5


# rms_norm.


class Norm(torch.nn.Module):
    def __init__(self, shape: tuple[int, ...], weight: bool, eps: float | None, dtype: torch.dtype):
        super().__init__()
        self.norm = torch.nn.RMSNorm(shape, eps=eps, elementwise_affine=weight, dtype=dtype)
        if weight:
            torch.nn.init.normal_(self.norm.weight)

    def forward(self, x: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (self.norm(x),)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])  # the square of 300 is more than FP16 holds
@pytest.mark.parametrize(
    ("shape", "weight", "eps"), [((32,), True, 1e-6), ((32,), False, 1e-6), ((4, 32), True, 1e-5), ((32,), True, None)]
)
def test_rms_norm_in_a_graph_is_torchs(
    shape: tuple[int, ...], weight: bool, eps: float | None, size: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    norm, x = Norm(shape, weight, eps, dtype), (torch.randn(2, 4, 32) * size).to(dtype)
    write.write(norm, {"x": x}, tmp_path / "norm.onnx", 20)
    out = outputs(str(tmp_path / "norm.onnx"), {"x": x})
    assert out.dtype == (np.float32 if dtype == torch.float32 else np.float16)
    assert np.isfinite(out).all()
    with torch.no_grad():
        assert apart(out, norm(x, False)[0]) < (1e-6 if dtype == torch.float32 else 1e-3)


def test_the_exporters_symbolics_are_as_before_afterwards(tmp_path: Path) -> None:
    norm = Norm((32,), True, 1e-6, torch.float32)
    trace(norm, {"x": torch.ones(2, 32)}, tmp_path / "norm.onnx", 20)
    with pytest.raises((torch.onnx.errors.UnsupportedOperatorError, ValueError)):
        torch.onnx.export(torch.nn.RMSNorm(32), torch.ones(2, 32), str(tmp_path / "x.onnx"), opset_version=20, dynamo=False)


# Example inputs.


def recorded(b: Bench, view: CallView, batch: int) -> dict[str, torch.Tensor]:
    """What the pipeline gives its backbone, in the first denoising step."""
    pipe, calls = open_pipeline(b.context(), b.pipeline()), []
    pipe.transformer.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    pipe(
        ["a cat"] * batch,
        num_inference_steps=1,
        output_type="latent",
        max_sequence_length=view.max_sequence_length,
        **FAMILY.arguments(view),
    )
    ((args, kwargs),) = calls
    assert args == ()
    return {n: x for n, x in kwargs.items() if isinstance(x, torch.Tensor)}


@pytest.mark.parametrize(("height", "width", "tokens", "batch"), [(32, 32, 16, 1), (48, 16, 8, 3)])
@pytest.mark.parametrize(("dtype", "guidance"), [("float32", False), ("float32", True), ("bfloat16", True), ("float16", False)])
def test_example_inputs_are_like_the_pipelines(
    dtype: str, guidance: bool, height: int, width: int, tokens: int, batch: int
) -> None:
    b = bench(dtype, guidance)
    view = called(height, tokens, width=width, guidance_scale=3.5)
    theirs = recorded(b, view, batch)
    ours = FAMILY.inputs(b.backbone(), b.vae(), Size(batch, height, width, tokens))
    assert ("guidance" in ours) == guidance
    assert {n: (x.shape, x.dtype) for n, x in ours.items()} == {n: (x.shape, x.dtype) for n, x in theirs.items()}
    for name in ("img_ids", "txt_ids"):
        assert torch.equal(ours[name], theirs[name])


def test_example_inputs_of_the_embedded_model_are_like_its_pipelines() -> None:
    theirs = recorded(emoji(), emoji().call, 2)
    ours = emoji().inputs(2)
    assert emoji().source == EMOJI
    assert {n: (x.shape, x.dtype) for n, x in ours.items()} == {n: (x.shape, x.dtype) for n, x in theirs.items()}


@pytest.mark.matrix
def test_a_guided_model_exports_with_its_guidance() -> None:
    b = bench(guidance=True)
    g = b.graph("int8_sq")
    assert g.json("graph.json")["inputs"]["guidance"] == {"shape": [1], "dtype": "float32"}
    low, high = ({**b.inputs(), "guidance": torch.tensor([v])} for v in (1.0, 7.0))
    path = str(g.path / "model.onnx")
    assert apart(outputs(path, low), outputs(path, high)) > 1e-3


# The numbers of FP8: onnxruntime is no judge of them with its optimisations on, but is with all of them off.


def test_an_fp8_graph_computes_what_its_checkpoint_does() -> None:
    b, m = bench(), model("fp8")
    del m.graph.value_info[:]
    for node in m.graph.node:
        node.domain = ""
    backbone = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("fp8"))
    assert apart(outputs(m.SerializeToString(), b.inputs()), call(backbone, b.inputs())) < NEAR


# The gate.


def losing(quantizer: str, layers: int) -> Any:
    """A trace in which that many layers lose their quantizers, as a newer exporter loses them all."""

    def lossy(backbone: torch.nn.Module, *args: Any) -> None:
        lost = [backbone.get_submodule(name) for name in checkpoint.quantized_layers(backbone)[:layers]]
        for layer in lost:
            getattr(layer, quantizer).disable()
        trace(backbone, *args)
        if quantizer == "input_quantizer":
            for layer in lost:
                layer.input_quantizer.enable()

    return lossy


@pytest.mark.parametrize("part", ["weight", "input"])
@pytest.mark.parametrize(
    ("name", "dtype", "mha", "lost"),
    some(
        [("int8_sq", "float32", False, 1), ("int8_sq", "float32", False, LAYERS), ("fp8", "float16", True, 1)],
        [("fp8", "float16", True, 1)],
    ),
)
def test_a_graph_that_lost_quantizers_is_refused(
    name: str, dtype: str, mha: bool, lost: int, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    b, kw = bench(), {"mha": True} if mha else {}
    b.checkpoint(name, **kw)
    monkeypatch.setattr(write, "trace", losing(f"{part}_quantizer", lost))
    with pytest.raises(GateError, match=f"{LAYERS - lost} matrix products .* quantized {part}, but {LAYERS} layers"):
        b.write_graph(b.context(), name, dtype=dtype, **kw)
