"""`parity.json`: what the kernels of the native runtime compute beside what is simulated, step by step and layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffopt.files.json_file import JsonFile


@dataclass(frozen=True)
class Agreement:
    """Of an output with that which is simulated, both given the same input."""

    relative_error: float
    """Norm of the difference over the norm of what is simulated."""
    cosine: float


@dataclass(frozen=True)
class ComparedLayer:
    name: str
    kind: str
    """`fp8` or `int8`, or `fallback` of a layer that no kernel takes: its weight is rounded, its input is not."""
    steps: tuple[Agreement, ...]
    """In each of `layer_steps`."""

    @property
    def worst(self) -> Agreement:
        return max(self.steps, key=lambda a: a.relative_error)


@dataclass(frozen=True, kw_only=True)
class ParityFile(JsonFile):
    NAME = "parity.json"
    SCHEMA = "diffopt.parity/1"

    format: str
    prompts: int
    """Drawn together, each side by its own backbone."""
    compiled: bool
    """Whether the native backbone was, as it is on a GPU."""
    steps: tuple[Agreement, ...]
    """Of the backbone's outputs in every denoising step; the simulated one leads, and both have its inputs."""
    expected: Sequence[float]
    """Relative error in every denoising step of the simulated backbone beside itself where each layer's output has noise of the
    layer's own relative error: what the layers' differences come to on their way, by codes that round otherwise."""
    layer_steps: Sequence[int]
    """The denoising steps, from 1, in which layers were compared."""
    layers: tuple[ComparedLayer, ...]
    """Every quantized layer, in the model's order."""
    latents: Sequence[float]
    """Relative error of the latents after every denoising step where the native backbone leads itself, from the same noise."""
    pictures: float
    """Relative error of its pictures."""
    psnr: Sequence[float]
    """dB, of each picture."""

    @property
    def worst_step(self) -> int:
        """From 1."""
        return max(range(len(self.steps)), key=lambda i: self.steps[i].relative_error) + 1

    @property
    def largest(self) -> float:
        """Relative error of a step at most, which a gate limits."""
        return self.steps[self.worst_step - 1].relative_error
