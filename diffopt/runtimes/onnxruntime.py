"""onnxruntime: the ONNX graph on a CPU, with real INT8 kernels."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime import OrtValue

from diffopt.artifact import OnnxGraph, Pipeline
from diffopt.caches.cachify import Cachify, policy
from diffopt.caches.loop import Loop
from diffopt.caches.policy import Policy
from diffopt.files.graph import OnnxGraphFile
from diffopt.groups.cache import CacheView
from diffopt.machine.worker import THREADS
from diffopt.models import Family
from diffopt.pipeline.open import family_of, open_around
from diffopt.runtimes import Running, Under
from diffopt.runtimes.cut_graph import Change, CutGraph, Run
from diffopt.runtimes.hits import check_hits
from diffopt.runtimes.stand_in import CutStandIn, Feeds, StandIn, looped
from diffopt.stage import Context

MEMORY = onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT)


@contextmanager
def running(ctx: Context, pipeline: Pipeline, subject: OnnxGraph, cache: CacheView | None, *, texts: bool) -> Iterator[Running]:
    """A pipeline whose backbone is the graph, for the graph's own batch size. The other parts stay with torch.

    With a cache the graph is one that is cut for it. Raises GateError where nothing was reused.
    """
    with opened(ctx, pipeline, subject, texts=texts)(cache) as run:
        yield run
    if cache and (saved := run.saved()):
        check_hits(cache, saved)


def opened(ctx: Context, pipeline: Pipeline, subject: OnnxGraph, *, texts: bool) -> Under:
    """The same under several caches in turn that reuse the blocks the graph is cut at; one that never hits is let through."""
    family = family_of(pipeline)
    pipe, own = open_around(Context(ctx.out, ctx.digest, ctx.locate), pipeline, texts=texts)
    graphs = subject.by_backbone()
    heads = {name: OnnxGraphFile.read(graph.path) for name, graph in graphs.items()}
    sessions = {name: _sessions(graph, heads[name]) for name, graph in graphs.items()}
    batch = OnnxGraphFile.read(subject.path).batch_size

    @contextmanager
    def under(cache: CacheView | None) -> Iterator[Running]:
        if cache is None:
            for name, (session,) in sessions.items():
                setattr(pipe, name, GraphBackbone(session, heads[name], family, own[name]))
            yield Running(pipe, batch)
            return
        assert isinstance(cache.settings, Cachify)
        steps = policy(cache.settings.filled(family))

        def made(loop: Loop) -> Iterator[tuple[str, CutStandIn]]:
            for name, head in heads.items():
                yield name, CutStandIn(_parts(sessions[name], head, steps), VALUES, loop, head, family, own[name])

        with looped(pipe, made) as savings:
            yield Running(pipe, batch, savings)

    return under


def _sessions(graph: OnnxGraph, head: OnnxGraphFile) -> list[onnxruntime.InferenceSession]:
    """Of the graph's parts in their order, or of the one graph that is whole."""
    return [_session(graph, head, part.file) for part in head.parts]


def _session(graph: OnnxGraph, head: OnnxGraphFile, name: str = "model.onnx") -> onnxruntime.InferenceSession:
    options, disabled = settings(head)
    path = str(graph.path / name)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)


def settings(head: OnnxGraphFile) -> tuple[onnxruntime.SessionOptions, list[str]]:
    """What a graph with this `graph.json` is run by: a session's options, and the fusions that it does without."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = int(os.environ.get(THREADS, 0))  # 0 takes every core; it reads no OMP_NUM_THREADS
    # On x86 without VNNI its products of UINT8 and INT8 saturate at 16 bits; so it makes UINT8 of both, there alone.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if head.pieces:  # of which one runs at a time: their activations share one arena, none spins while another runs
        onnxruntime.create_and_register_allocator(MEMORY, None)
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
    # Its fusion of MatMul and Add into Gemm hides the products from the integer kernels: INT8 then runs at a third of
    # the speed of FP32. Full-precision graphs keep it.
    return options, ["MatMulAddFusion"] if head.format else []


def _parts(sessions: Sequence[onnxruntime.InferenceSession], head: OnnxGraphFile, policy: Policy) -> CutGraph:
    """The parts of one backbone's graph. What passes between them is not copied."""

    def runs(session: onnxruntime.InferenceSession) -> Run:
        return lambda inputs, outputs: session.run_with_ort_values(list(outputs), dict(inputs))

    def change(compute: Callable[[Any, Any], Any]) -> Callable[[OrtValue, OrtValue], OrtValue]:
        return lambda a, b: OrtValue.ortvalue_from_numpy(compute(a.numpy(), b.numpy()))

    return CutGraph(head.parts, [runs(s) for s in sessions], Change(change(np.subtract), change(np.add)), policy.reuses)


class GraphBackbone(StandIn):
    """The graph in the place of the backbone."""

    def __init__(self, session: Any, head: OnnxGraphFile, family: Family, backbone: Any):
        def compute(feeds: Feeds) -> torch.Tensor:
            (out,) = session.run(None, {name: x.cpu().numpy() for name, x in feeds.items()})
            return torch.from_numpy(out)

        super().__init__(compute, head, family, backbone)


VALUES = (lambda x: OrtValue.ortvalue_from_numpy(x.cpu().numpy()), lambda x: torch.from_numpy(x.numpy()))
