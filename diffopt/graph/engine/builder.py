"""The engine builder: TensorRT where its library is installed, else TensorRT-RTX, which builds without a GPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffopt.errors import GateError, PlanError
from diffopt.files.graph import Profile
from diffopt.files.plan import EngineLayer
from diffopt.graph.engine import module, timing_cache
from diffopt.graph.engine.layers import NODE, read
from diffopt.graph.engine.log import NOISE, BuilderLog
from diffopt.graph.engine.options import Options
from diffopt.machine.environment import gpus, tensorrt

PORTABLE = ("8.0", "8.6", "8.9", "12.0")
"""Compute capabilities that a plan of TensorRT-RTX is for, where no other is asked of its builder:
docs.nvidia.com/deeplearning/tensorrt-rtx, CPU-Only AOT. Turing (7.5) is none of them."""
BACKBONE = ("/backbone/", "backbone.")
"""How the names of a graph's nodes begin."""


@dataclass(frozen=True)
class Built:
    plan: memoryview
    flavour: str
    version: str
    profiles: list[Profile]
    """For each profile and dynamic input its shapes `min`, `opt` and `max`; static graphs have none."""
    capabilities: tuple[str, ...]
    """Compute capabilities of GPUs that can run it; none of TensorRT's."""
    layers: list[EngineLayer] = field(default_factory=list)
    """In the order in which they run; empty where the builder did not list them."""
    products: list[str] = field(default_factory=list)
    """The graph's nodes that are matrix products or convolutions."""


def build(graph: Path, options: Options, profile: Profile | None = None) -> Built:
    """Build an engine plan from an ONNX file, strongly typed: the graph's own types decide every precision.

    `profile` says which shapes a graph with dynamic axes must take; without one such axes are fixed to 1. Raises
    GateError with the parser's or builder's own words when the graph is refused.
    """
    found = tensorrt()
    if found is None:
        raise PlanError("build: no engine builder is installed (got none); `pip install 'diffopt[tensorrt-rtx]'`")
    flavour = found["flavour"]
    trt = module(flavour)
    told = BuilderLog(trt)
    builder = trt.Builder(told.sink)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, told.sink)
    if not parser.parse_from_file(str(graph)):
        raise GateError(_unparsed(parser, flavour))
    config = _config(trt, builder, options)
    cache = timing_cache.opened(trt, config, options.timings)
    profiles = _profiles(builder, config, network, profile or {})
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise GateError(f"build: {flavour} builds no plan (got {'; '.join(told.errors)[:500]}); see the run's log")
    cache.keep(config)
    rtx = flavour == "tensorrt_rtx"
    targets = tuple(c for c in PORTABLE if c not in told.given_up) if rtx else ()
    return Built(memoryview(plan), flavour, trt.__version__, profiles, targets, read(told.layers), _products(trt, network))


def _config(trt: Any, builder: Any, options: Options) -> Any:
    config = builder.create_builder_config()
    config.builder_optimization_level = options.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # it lists the layers, and the plan has the same size
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    return config


def _unparsed(parser: Any, flavour: str) -> str:
    """Which node is not taken, and of which of the model's modules."""
    error = parser.get_error(parser.num_errors - 1) if parser.num_errors else None
    reasons = [line for line in (error.desc() if error else "").splitlines() if NOISE not in line]
    said = " ".join(" ".join(reasons).split())
    if error is None or not error.node_name():
        return f"build: {flavour} does not parse the graph (got {said or 'no reason'}); see the run's log"
    name, operator = error.node_name(), error.node_operator()
    where = f"{name}, of {part}" if (part := owner(name)) else name
    if "Plugin not found" in said:
        return (
            f"build: {flavour} has no operator {operator} (got node {where}); leave that module out by format.exclude if it "
            "is quantized, choose another export.opset, or make no plan by export=onnx"
        )
    return f"build: {flavour} does not take node {where} (got {operator}: {said}); see the run's log"


def owner(node: str) -> str:
    """The model's module that a node of the graph comes from; empty for one that is in none."""
    for start in BACKBONE:
        if node.startswith(start):
            return node.removeprefix(start).replace("/", ".").rpartition(".")[0]
    return ""


def _products(trt: Any, network: Any) -> list[str]:
    kinds = {getattr(trt.LayerType, n) for n in ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "EINSUM")}
    layers = (network.get_layer(i) for i in range(network.num_layers))
    return [*dict.fromkeys(n for layer in layers if layer.type in kinds for n in NODE.findall(layer.metadata))]


def _profiles(builder: Any, config: Any, network: Any, wanted: Profile) -> list[Profile]:
    """One profile of all dynamic inputs, where there are any."""
    shapes: dict[str, Mapping[str, Sequence[int]]] = {}
    for i in range(network.num_inputs):
        x = network.get_input(i)
        if -1 in tuple(x.shape):
            fixed = [1 if d == -1 else d for d in x.shape]
            shapes[x.name] = wanted.get(x.name) or dict.fromkeys(("min", "opt", "max"), fixed)
    if not shapes:
        return []
    profile = builder.create_optimization_profile()
    for name, s in shapes.items():
        profile.set_shape(name, s["min"], s["opt"], s["max"])
    config.add_optimization_profile(profile)
    return [shapes]


def target(built: Built) -> str:
    """The GPUs that can run the plan, for people."""
    if built.flavour == "tensorrt_rtx":
        there = ", ".join(built.capabilities)
        return f"any GPU of compute capability {there}" if there else "no GPU that the builder knows"
    return f"GPUs like this machine's: {gpus()[0]['name']}" if gpus() else "GPUs like the builder's"
