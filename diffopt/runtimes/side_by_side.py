"""Contenders of one pipeline, all open at once: those of equal weights share them, and all share VAE and text encoders."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from diffopt.artifact import Checkpoint, EnginePlan, OnnxGraph, Pipeline
from diffopt.errors import PlanError
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.graph import OnnxGraphFile
from diffopt.files.pipeline import PipelineFile
from diffopt.files.plan import EnginePlanFile
from diffopt.groups.cache import CacheView
from diffopt.groups.eval import OF_GRAPHS, options
from diffopt.kernels.convert import Converted
from diffopt.pipeline.open import by_name, open_pipeline, open_texts
from diffopt.pipeline.placement import weight
from diffopt.pipeline.texts import Texts, encode
from diffopt.runtimes import RUNTIMES, Running, native
from diffopt.runtimes.contenders import Entry
from diffopt.runtimes.torch import cached
from diffopt.stage import Context
from diffopt.text import size

COMPILED = 64
"""Forms of one block that are compiled at most, of all contenders: beyond its own limit, 8, torch goes on uncompiled."""


@dataclass(frozen=True)
class Open:
    """A contender that can draw."""

    entry: Entry
    cache: CacheView | None
    run: Running
    device: str
    """On which its backbone computes."""
    seconds: float
    """From the files on; of weights that several share each has all of it."""
    weights: int
    """Bytes of its backbones."""
    rest: int | None
    """Bytes of all that its pipeline has on a GPU; None on a CPU."""


@dataclass(frozen=True)
class _Read:
    module: torch.nn.Module
    """Never run, compiled or given a cache itself: its twins are."""
    made: Converted | None
    seconds: float


class Opener(ExitStack):
    """Opens them one by one, and closes all. Raises PlanError for a cache that does not fit, and for weights without room."""

    def __init__(
        self,
        ctx: Context,
        pipeline: Pipeline,
        checkpoint: Checkpoint | None,
        graphs: Mapping[str, OnnxGraph | EnginePlan],
        cuda_graph: bool = False,
    ):
        """`graphs` has what the runtimes of graphs run, by their names; `cuda_graph` is for those that can."""
        super().__init__()
        self.enter_context(torch._dynamo.config.patch(recompile_limit=COMPILED))
        self.ctx = ctx
        self.pipeline = pipeline
        self.checkpoint = checkpoint
        self.graphs = graphs
        self.cuda_graph = cuda_graph
        self.pinned = PipelineFile.read(pipeline.path)
        self._read: dict[bool, _Read] = {}
        self._vaes: dict[str, Any] = {}
        self._texts: Any = None

    def open(self, entry: Entry, cache: CacheView | None) -> Open:
        """`cache` is what the entry's name says that it has."""
        started = time.perf_counter()
        cache = cache if entry.method else None
        if entry.way in OF_GRAPHS:
            graph = self.graphs[entry.way]
            given = options(entry.way, self.cuda_graph)
            run = self.enter_context(RUNTIMES[entry.way].opened(self.ctx, self.pipeline, graph, texts=False, **given)(cache))
            return self._opened(entry, cache, run, time.perf_counter() - started, _stored(graph))
        read = self._weights(entry.way == "native")
        started = time.perf_counter()
        module = twin(read.module)
        if entry.way == "eager":
            pipe = open_pipeline(self.ctx, self.pipeline, module, texts=False)
            run = self.enter_context(cached(pipe, self.pipeline, by_name(self.pinned, module), cache))
        else:
            run = self.enter_context(native.ready(self.ctx, self.pipeline, module, texts=False)(cache))
        seconds = read.seconds + time.perf_counter() - started
        return self._opened(entry, cache, run, seconds, weight([module]))

    def encoder(self, prompts: Sequence[str], model: Any) -> tuple[Callable[[], Texts], bool]:
        """What gives the embeddings of the prompts, and whether it computes them each time: random weights have no text
        encoders, so that their embeddings are drawn once."""
        if self.pinned.weights == "random":
            drawn = encode(self.ctx, None, self.pipeline, prompts, model)
            return lambda: drawn, False
        self._texts = open_texts(self.ctx, self.pipeline)
        return lambda: encode(self.ctx, self._texts, self.pipeline, prompts, model), True

    def kernels(self) -> set[str]:
        """Names of the layers that the native contender computes by a kernel: linear ones, and attention in FP8."""
        read = self._read.get(True)
        if read is None or read.made is None or self.checkpoint is None:
            return set()
        return {*CheckpointFile.read(self.checkpoint.path).layers, *read.made.attention} - {*read.made.left}

    def _weights(self, quantized: bool) -> _Read:
        if quantized not in self._read:
            started = time.perf_counter()
            module, made = native.read(self.ctx, self.pipeline, self.checkpoint if quantized else None)
            self._read[quantized] = _Read(module, made, time.perf_counter() - started)
        return self._read[quantized]

    def _opened(self, entry: Entry, cache: CacheView | None, run: Running, seconds: float, weights: int) -> Open:
        pipe, device = run.pipe, "cpu" if entry.way == "onnxruntime" else self.ctx.device
        if getattr(pipe, "vae", None) is not None:
            pipe.register_modules(vae=self._vaes.setdefault(device, pipe.vae))
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu and any(not p.is_cuda for name in self.pinned.backbones for p in getattr(pipe, name).parameters()):
            raise PlanError(
                f"eval.bench: {entry.name} has no room on the GPU beside the others, and would be timed as it moves there "
                f"(got a backbone of {size(weights)}); name fewer"
            )
        parts = [*pipe.components.values(), *(self._texts.components.values() if self._texts else [])]
        rest = weight(m for m in parts if isinstance(m, torch.nn.Module)) if on_gpu else None
        if rest is not None and entry.way == "tensorrt":  # which has them apart from torch
            rest += weights
        return Open(entry, cache, run, device, seconds, weights, rest)


def _stored(graph: OnnxGraph | EnginePlan) -> int:
    """Bytes of the weights as a graph has them, or of all that a plan has."""
    if isinstance(graph, EnginePlan):
        return EnginePlanFile.read(graph.path).bytes
    return sum(OnnxGraphFile.read(g.path).bytes for g in graph.by_backbone().values())


def twin(module: torch.nn.Module) -> torch.nn.Module:
    """The same module again, to be compiled or cached by itself, of the very same parameters and buffers."""
    return deepcopy(module, {id(x): x for x in chain(module.parameters(), module.buffers())})
