"""The native backbone beside the simulated one: the same prompts, seeds and steps by either, as one file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffopt.artifact import Checkpoint, Pipeline
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.parity import ComparedLayer, ParityFile
from diffopt.files.pipeline import PipelineFile
from diffopt.machine.memory import release
from diffopt.metrics.psnr import psnr
from diffopt.pipeline.open import open_pipeline
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.checkpoint import quantized_layers, restore
from diffopt.quantization.folding import fold
from diffopt.runtimes import native
from diffopt.runtimes.agreement import Call, latents, noisy, relative_error, replayed, watched
from diffopt.stage import Context

Drawing = Callable[[Any, Callable[[], None]], np.ndarray]
"""From a pipeline, and what is called after each denoising step, to its pictures or videos, as `draw` gives them."""


@dataclass(frozen=True)
class Simulated:
    """What the simulated backbone gave."""

    calls: list[list[Call]]
    layer_steps: list[int]
    layers: tuple[ComparedLayer, ...]
    expected: list[float]
    """Of each step, what the layers' own errors come to."""
    latents: list[torch.Tensor]
    drawn: np.ndarray


class SideBySide:
    """Of one checkpoint. `simulate` comes before `beside`, which opens what it compiles when the simulated one is let go."""

    def __init__(self, ctx: Context, pipeline: Pipeline, checkpoint: Checkpoint, drawing: Drawing, tick: Callable[[], None]):
        """`tick` is called after each step of four passes."""
        self.ctx, self.pipeline, self.checkpoint = ctx, pipeline, checkpoint
        self.drawing, self.tick = drawing, tick
        self.names = PipelineFile.read(pipeline.path).backbones
        self.native = native.converted(ctx, pipeline, checkpoint)  # first: until it is converted it is as large as the other

    def simulate(self) -> Simulated:
        fake = restore(self.ctx, self.pipeline, self.checkpoint)
        names = quantized_layers(fake)
        fold(fake, self.ctx.device)
        pipe = open_pipeline(self.ctx, self.pipeline, fake, texts=False)
        with (
            simulated(),
            latents(pipe.scheduler) as trace,
            watched(fake, self.native, names, lambda: len(pipe.scheduler.timesteps)) as found,
        ):

            def stepped() -> None:
                found.end()
                self.tick()

            drawn = self.drawing(pipe, stepped)
        parts = {n: getattr(pipe, n) for n in self.names}
        layers = tuple(found.layers())
        with simulated(), noisy(fake, layers), torch.inference_mode():
            expected = [a.relative_error for a in replayed(found.calls, parts, self.tick)]
        return Simulated(found.calls, [i + 1 for i in found.steps], layers, expected, trace, drawn)

    def beside(self) -> ParityFile:
        """Raises GateError where something is not finite."""
        fake = self.simulate()
        release()
        backbone = native.fused(self.ctx, self.pipeline, self.native)
        with native.ready(self.ctx, self.pipeline, backbone, texts=False)(None) as run:
            parts = {n: getattr(run.pipe, n) for n in self.names}
            with torch.inference_mode():
                steps = replayed(fake.calls, parts, self.tick)
            with latents(run.pipe.scheduler) as ours:
                drawn = self.drawing(run.pipe, self.tick)
        return ParityFile(
            format=CheckpointFile.read(self.checkpoint.path).format,
            prompts=len(drawn),
            compiled=self.ctx.device == "cuda",
            steps=tuple(steps),
            expected=fake.expected,
            layer_steps=fake.layer_steps,
            layers=self._ordered(fake.layers),
            latents=[relative_error(a, b, "what native draws") for a, b in zip(ours, fake.latents, strict=True)],
            pictures=relative_error(torch.from_numpy(drawn), torch.from_numpy(fake.drawn), "what native draws"),
            psnr=[psnr(_levels(a), _levels(b)) for a, b in zip(drawn, fake.drawn, strict=True)],
        )

    def _ordered(self, layers: Sequence[ComparedLayer]) -> tuple[ComparedLayer, ...]:
        """In the order of the checkpoint, which is the model's; they were found in the order of their calls."""
        place = {name: i for i, name in enumerate(CheckpointFile.read(self.checkpoint.path).layers)}
        return tuple(sorted(layers, key=lambda x: place[x.name]))


def _levels(picture: np.ndarray) -> np.ndarray:
    """8 bits a channel; the frames of a video below each other."""
    found: np.ndarray = (picture * 255).round().astype(np.uint8).reshape(-1, *picture.shape[-2:])
    return found
