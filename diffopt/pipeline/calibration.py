"""Running the full-precision backbones over a chunk of prompts: text encoders and VAE are not there, nothing is decoded."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from diffopt.artifact import Embeddings, Pipeline, TrainTexts
from diffopt.data.prompts import PromptSet
from diffopt.files.pipeline import PipelineFile
from diffopt.groups import CallView
from diffopt.pipeline.draw import batches, draw
from diffopt.pipeline.open import family_of, open_denoiser
from diffopt.pipeline.texts import load
from diffopt.stage import Context


class Chunk(Protocol):
    """Prompts, the index of the first one in its set, and how they are drawn: a view of the config."""

    prompts: PromptSet
    start: int
    batch_size: int
    n_steps: int


class Calibration:
    """An opened denoiser, for one chunk after another."""

    def __init__(self, ctx: Context, pipeline: Pipeline):
        self.device = ctx.device
        self.family = family_of(pipeline)
        self.pipe = open_denoiser(ctx, pipeline)
        names = PipelineFile.read(pipeline.path).backbones
        parts = {n: getattr(self.pipe, n) for n in names}
        self.backbone: torch.nn.Module = torch.nn.ModuleDict(parts) if len(parts) > 1 else parts[names[0]]
        """What `open_backbone` gives, within the pipeline."""

    def __call__(
        self,
        texts: Embeddings | TrainTexts,
        chunk: Chunk,
        model: CallView,
        seed: int,
        on_step: Callable[[], None],
    ) -> list[np.ndarray]:
        """Denoise every prompt of the chunk: the pipeline's latents, batch by batch. `on_step` is called after each step of
        each batch.

        `texts` are of these prompts, or of more that begin with them.
        """
        found = []
        for (first, prompts), encoded in zip(batches(chunk.prompts, chunk.batch_size), load(texts, self.device), strict=False):
            batch = {name: x[: len(prompts)] for name, x in encoded.items()}
            seeds = [seed + chunk.start + first + i for i in range(len(prompts))]
            arguments = self.family.arguments(model)
            found.append(draw(self.pipe, batch, seeds, chunk.n_steps, arguments, decode=False, on_step=on_step))
        return found
