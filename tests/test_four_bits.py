"""Whatever found its scales, a checkpoint of four bits exports, is built, and holds in graph and package what was scored."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from test_learned_scales import learned
from test_packing import computed
from tiny import Bench, bench

from diffopt.artifact import Checkpoint, EnginePlan, OnnxGraph
from diffopt.layouts import modelopt
from diffopt.machine import environment
from diffopt.quantization import checkpoint
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.numbers import numbers
from diffopt.stages.build import BuilderView, build
from diffopt.stages.export import GraphView, SizeView, export

pytestmark = pytest.mark.matrix

SEARCHED: dict[str, tuple[str, dict[str, Any]]] = {
    "nvfp4-mse": ("nvfp4", {"weights": "mse"}),
    "nvfp4-hessian": ("nvfp4", {"weights": "local_hessian"}),
    "nvfp4-four-over-six": ("nvfp4", {"weights": "four_over_six"}),
    "nvfp4-headroom": ("nvfp4", {"weights": "local_hessian", "inputs": "headroom"}),
    "svdquant": ("nvfp4_svdquant", {"weights": "local_hessian", "rank_iterations": 8}),
    "svdquant-shared": ("nvfp4_svdquant", {"weights": "mse", "rank_iterations": 8, "share": True, "round": True}),
    "nvfp4-gptq": ("nvfp4", {"weights": "local_hessian", "rounding": "gptq"}),
    "svdquant-gptq": ("nvfp4_svdquant", {"weights": "local_hessian", "rounding": "gptq"}),
    "int4-gptq": ("int4_awq", {"awq": "full", "rounding": "gptq"}),
    "int4-hessian": ("int4_awq", {"weights": "local_hessian"}),
    "int4-clip": ("int4_awq", {"awq": "clip"}),
    "int4-full": ("int4_awq", {"awq": "full"}),
}
LEARNED = {
    "nvfp4-learned": ("nvfp4", "local_hessian", "learned"),
    "nvfp4-dual": ("nvfp4", "local_hessian", "dual"),
    "svdquant-tied": ("nvfp4_svdquant", "local_hessian", "tied"),
    "int4-learned": ("int4_awq", "local_hessian", "learned"),
}
TYPES = {"nvfp4": onnx.TensorProto.FLOAT4E2M1, "nvfp4_svdquant": onnx.TensorProto.FLOAT4E2M1, "int4_awq": onnx.TensorProto.INT4}


def made(case: str) -> tuple[str, Checkpoint]:
    if case in LEARNED:
        return LEARNED[case][0], learned(*LEARNED[case])
    name, how = SEARCHED[case]
    return name, bench().checkpoint(name, **how)


def exported(b: Bench, found: Checkpoint) -> OnnxGraph:
    ctx, size = b.context(), SizeView(**{n: getattr(b.call, n) for n in SizeView.model_fields})
    view = GraphView(opset=20, batch_size=1, max_batch_size=None, high_precision_dtype="float16")
    export.run(ctx, size, view, b.pipeline(), found, None)
    return OnnxGraph(ctx.out, "graph")


def held(graph: OnnxGraph) -> list[np.ndarray]:
    """The weights of four bits of the file, as its own nodes make them: [out, in], FP32."""
    content = onnx.load(graph.path / "model.onnx").graph
    values = {t.name: numpy_helper.to_array(t) for t in content.initializer}
    four = {t.name for t in content.initializer if t.data_type in TYPES.values()}
    found, ends = {*four}, {}
    for node in content.node:
        if found & {*node.input} and {*node.input} <= {*values}:
            about = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            values[node.output[0]] = computed(node.op_type, [values[i] for i in node.input], about)
            found.add(node.output[0])
            ends[node.output[0]] = values[node.output[0]]
        elif {*node.input} & {*values} and node.op_type == "DequantizeLinear" and {*node.input} <= {*values}:
            about = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            values[node.output[0]] = computed(node.op_type, [values[i] for i in node.input], about)  # scales of blocks
    products = {i for n in content.node if n.op_type in ("MatMul", "Gemm") for i in n.input}
    return [x.astype(np.float32).T for name, x in ends.items() if name in products]


@pytest.mark.parametrize("case", [*SEARCHED, *LEARNED])
def test_graph_package_and_plan_hold_what_was_scored(case: str) -> None:
    b = bench()
    name, found = made(case)
    model = checkpoint.restore(b.context(), b.pipeline(), found)
    layers = {n: model.get_submodule(n) for n in checkpoint.quantized_layers(model)}
    graph = exported(b, found)
    there = held(graph)
    assert len(there) == len(layers) == graph.json("graph.json")["quantized_products"]
    for layer_name, layer in layers.items():
        own: Any = layer
        with torch.no_grad(), simulated():
            scored = own.weight_quantizer(own.weight.detach())
            half = own.weight_quantizer(own.weight.detach().half()).float().numpy()  # as the graph is, before it is rounded
        assert torch.allclose(numbers(modelopt.layer(own, name), name), scored, rtol=2**-22, atol=0), layer_name
        near = [np.allclose(x, half, rtol=2**-10, atol=2**-24) for x in there if x.shape == half.shape]  # FP16's last bit
        assert sum(near) == 1, layer_name
    if environment.tensorrt() is not None:
        ctx = b.context()
        build.run(ctx, BuilderView(builder_optimization_level=0), graph)
        assert EnginePlan(ctx.out, "plan").json("plan.json")["format"] == name
