"""onnxruntime: the ONNX graph on a CPU, with real INT8 kernels."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import onnxruntime
import torch

from diffopt.artifact import OnnxGraph, Pipeline
from diffopt.groups.cache import CacheView
from diffopt.models import Family
from diffopt.pipeline.open import family_of, open_pipeline
from diffopt.runtimes import Running
from diffopt.stage import Context
from diffopt.worker import THREADS


@contextmanager
def running(ctx: Context, pipeline: Pipeline, subject: OnnxGraph, cache: CacheView | None, *, texts: bool) -> Iterator[Running]:
    """A pipeline whose backbone is the graph, for the graph's own batch size. The other parts stay with torch."""
    family = family_of(pipeline)
    pipe = open_pipeline(Context(ctx.out, ctx.digest, ctx.locate), pipeline, texts=texts)
    for name, part in subject.parts().items():
        head = part.json("graph.json")
        setattr(pipe, name, GraphBackbone(_session(part, head), head, family, getattr(pipe, name)))
    yield Running(pipe, subject.json("graph.json")["batch_size"])


def _session(graph: OnnxGraph, head: dict[str, Any]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = int(os.environ.get(THREADS, 0))  # 0 takes every core; it reads no OMP_NUM_THREADS
    # Its fusion of MatMul and Add into Gemm hides the products from the integer kernels: INT8 then runs at a third of
    # the speed of FP32. Full-precision graphs keep it.
    disabled = ["MatMulAddFusion"] if head["format"] else []
    path = str(graph.path / "model.onnx")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)


class GraphBackbone(torch.nn.Module):
    """Stands where the backbone stood: same configuration and call, computed by the graph."""

    def __init__(self, session: onnxruntime.InferenceSession, head: dict[str, Any], family: Family, backbone: Any):
        super().__init__()
        self.session = session
        self.inputs = head["inputs"]
        self.profile = head["profile"] or {}
        self.config = backbone.config
        self.dtype = backbone.dtype
        self.device = torch.device("cpu")
        self.add_embedding = getattr(backbone, "add_embedding", None)  # SDXL's pipeline asks it for its size
        self.cache_context = getattr(backbone, "cache_context", None)  # a UNet has none
        self.family = family
        self.names = list(signature(backbone.forward).parameters)

    def forward(self, *positional: Any, return_dict: bool = False, **arguments: Any) -> tuple[torch.Tensor]:
        arguments = self.family.flat(dict(zip(self.names, positional, strict=False)) | arguments)
        feeds = {}
        for name, about in self.inputs.items():
            value = arguments[name].to(getattr(torch, about["dtype"]))
            if not self._takes(name, list(value.shape)):
                raise ValueError(f"{name}: the graph takes {about['shape']}, but the pipeline gives {list(value.shape)}")
            feeds[name] = value.cpu().numpy()
        (out,) = self.session.run(None, feeds)
        return (torch.from_numpy(out).to(self.dtype),)

    def _takes(self, name: str, shape: list[int]) -> bool:
        if name not in self.profile:
            return bool(shape == self.inputs[name]["shape"])
        low, high = self.profile[name]["min"], self.profile[name]["max"]
        return len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
