"""`graph.json`: an ONNX graph's files, inputs and counted quantizers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffopt.files.json_file import JsonFile

OUTPUT = "out"
"""The name of a graph's output."""
Profile = Mapping[str, Mapping[str, Sequence[int]]]
"""For each dynamic input its shapes `min`, `opt` and `max`."""


@dataclass(frozen=True)
class GraphInput:
    shape: tuple[int, ...]
    """For the graph's own batch size."""
    dtype: str


@dataclass(frozen=True)
class PartFile:
    """One part of a graph, as a file."""

    file: str
    reused: bool
    """Steps that reuse do without it, and take its outputs from before."""
    inputs: Sequence[str]
    outputs: Sequence[str]
    entering: Mapping[str, str]
    """For those of the outputs of which the change is reused: the name of what they are a change to."""
    profile: Profile | None
    """Of its dynamic inputs; None for a static graph."""
    bytes: int
    """Of its weights as stored."""


@dataclass(frozen=True, kw_only=True)
class OnnxGraphFile(JsonFile):
    """Of several backbones each has one in its folder; that of the whole counts all, and has the first's inputs."""

    NAME = "graph.json"

    format: str | None
    """None for full precision."""
    weights: str
    backbones: tuple[str, ...]
    batch_size: int
    """In pictures."""
    opset: int
    inputs: Mapping[str, GraphInput]
    profile: Profile | None
    """None for a static graph."""
    quantized_layers: int
    unused_layers: tuple[str, ...]
    """Quantized ones that the graph has no use for."""
    quantized_products: int
    """Matrix products and convolutions whose weight is stored quantized."""
    operators: Mapping[str, int]
    """Those that quantize, counted."""
    bytes: int
    """Of all weights as stored."""
    reused: tuple[str, ...] | None = None
    """Modules that steps do without that reuse them; None where the graph is not cut."""
    pieces: tuple[PartFile, ...] | None = None
    """The parts of a graph that is cut."""
    diffusers: str
    file: str = "model.onnx"
    """Of a graph that is whole: another program may look for another name."""
    output: str = OUTPUT
    command: str | None = None
    """That of the other program, which runs it."""

    @property
    def parts(self) -> tuple[PartFile, ...]:
        """In their order; of a graph that is whole it is its only one."""
        return self.pieces or (PartFile(self.file, False, [*self.inputs], [self.output], {}, self.profile, self.bytes),)
