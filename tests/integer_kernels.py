"""What onnxruntime runs of a graph by integer kernels: what makes INT8 fast, which can be counted where a time cannot."""

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime

from diffopt.artifact import OnnxGraph
from diffopt.files.graph import OnnxGraphFile
from diffopt.runtimes.onnxruntime import settings

INTEGER = ("MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "ConvInteger", "QLinearConv")


def operators(graph: OnnxGraph, folder: Path) -> Counter[str]:
    """How often each stands in the graph that the runtime's own session makes of this one. Writes it to `folder`."""
    options, disabled = settings(OnnxGraphFile.read(graph.path))
    path = folder / "optimized.onnx"
    options.optimized_model_filepath = str(path)
    cpu = ["CPUExecutionProvider"]
    onnxruntime.InferenceSession(str(graph.path / "model.onnx"), options, providers=cpu, disabled_optimizers=disabled)
    return Counter(n.op_type for n in onnx.load(path, load_external_data=False).graph.node)


def integer_products(graph: OnnxGraph, folder: Path) -> int:
    """Of its matrix products and convolutions those that integer kernels compute."""
    found = operators(graph, folder)
    return sum(found[name] for name in INTEGER)
