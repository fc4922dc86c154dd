"""`plan.json`: what built a serialized engine, what is in it, and what can run it."""

from collections.abc import Mapping
from dataclasses import dataclass

from diffopt.files.graph import Profile
from diffopt.files.json_file import JsonFile

LAYERS = ".layers.json"
"""What follows a plan's name in that of the file of its layers: `model.layers.json` beside `model.plan`."""


@dataclass(frozen=True)
class EngineTensor:
    name: str
    shape: tuple[int, ...]
    type: str
    """FP4, INT4, INT8, FP8, BF16, FP16 or FP32, or another in the builder's word."""


@dataclass(frozen=True)
class EngineLayer:
    """One layer of a plan, as its builder lists it."""

    name: str
    kind: str
    inputs: tuple[EngineTensor, ...]
    weights: tuple[EngineTensor, ...]
    """And other constants."""
    outputs: tuple[EngineTensor, ...]
    tactic: str
    """The kernel. TensorRT-RTX chooses it on the GPU that runs the plan, so its plans have none yet."""
    nodes: tuple[str, ...]
    """Of the ONNX graph, that it runs."""


@dataclass(frozen=True)
class PartPlan:
    """The engine of one part of a graph that is cut."""

    file: str
    bytes: int
    profiles: tuple[Profile, ...]
    reused: bool
    """Steps that reuse do without it."""


@dataclass(frozen=True)
class EnginePlanFile(JsonFile):
    NAME = "plan.json"

    builder: str
    version: str
    target: str
    """The GPUs that can run it."""
    profiles: tuple[Profile, ...]
    """Static graphs have none."""
    builder_optimization_level: int
    bytes: int
    """Of all its files."""
    format: str | None
    """The graph's; None for full precision."""
    plans: tuple[PartPlan, ...] | None = None
    """Of a graph that is cut, in the order in which they run."""
    capabilities: tuple[str, ...] = ()
    """Compute capabilities of GPUs that can run it, as 8.9; none of TensorRT's, whose plans are for one model of GPU."""
    gpu: str | None = None
    """The GPU that TensorRT built it for, its name and capability; None of TensorRT-RTX's."""
    products: Mapping[str, int] | None = None
    """The graph's matrix products and convolutions, counted by the precision that they run in; None where its builder did
    not list its layers."""
    quantized_products: int = 0
    """Those that have a quantized weight in the graph."""
    refit: bool = False
    """Whether its weights can be replaced."""
    weight_streaming: bool = False
    """Whether weights can stay in RAM and come to the GPU as they are needed."""
    commands: tuple[str, ...] = ()
    """Those of the builder's own program that build the same."""
