"""Pictures by the model in training, beside the full-precision model's of the same prompts and seeds."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffopt.files.pipeline import PipelineFile
from diffopt.groups.train import Validation
from diffopt.metrics import METRICS
from diffopt.metrics.metric import Weights
from diffopt.pipeline.draw import draw
from diffopt.pipeline.open import family_of, open_backbone, open_pipeline
from diffopt.quality.direction import sign
from diffopt.stage import Context
from diffopt.training.examples import Examples
from diffopt.training.task import Task

ROWS = 4  # prompts that a call of the pipeline draws


class Validator:
    def __init__(self, ctx: Context, task: Task, how: Validation, examples: Examples):
        pipeline = task.pipeline
        self.ctx, self.pipeline, self.how, self.examples, self.seed = ctx, pipeline, how, examples, task.seed
        self.arguments = family_of(pipeline).arguments(task.model)
        self.dtype = getattr(torch, PipelineFile.read(pipeline.path).dtype)
        metric = METRICS[how.metric]
        self.sign = sign(metric.better)
        self.scorer = metric.open(Weights({}))
        self.references = self._draw(open_backbone(ctx, pipeline))

    def __call__(self, whole: torch.nn.Module, sheet: Path | None) -> float:
        """The metric's mean over pictures; `sheet` becomes a PNG with the references above these."""
        drawn = self._draw(whole)
        names = [self.examples.prompts[i] for i in self.examples.held]
        pictures, theirs = (x.reshape(-1, *x.shape[-3:]) for x in (drawn, self.references))  # of videos each frame
        each = self.scorer.score([*pictures], names, [*theirs])
        if sheet:
            sheet.parent.mkdir(exist_ok=True)
            Image.fromarray(self.sheet(drawn)).save(sheet)
        return float(np.mean(each))

    def sheet(self, drawn: np.ndarray) -> np.ndarray:
        """uint8 [2 height, size width, 3]; of videos the middle frame."""
        rows = [x[:, x.shape[1] // 2] if x.ndim == 5 else x for x in (self.references, drawn)]
        return np.concatenate([np.concatenate([*x], 1) for x in rows], 0)

    def better(self, score: float, than: float | None) -> bool:
        return than is None or self.sign * (score - than) > 0

    def _draw(self, backbone: torch.nn.Module) -> np.ndarray:
        """uint8 [size, (frames,) height, width, 3]. The VAE is opened for it, and gone afterwards."""
        pipe = open_pipeline(self.ctx, self.pipeline, backbone, texts=False)
        held, found = self.examples.held, []
        device = torch.device(self.ctx.device).type
        with torch.autocast(device, dtype=self.dtype, enabled=self.dtype != torch.float32):
            for first in range(0, len(held), ROWS):
                rows = held[first : first + ROWS]
                texts = {n: x.to(self.ctx.device) for n, x in self.examples.whole(rows).items()}
                seeds = [self.seed + i for i in rows]
                # Weights that are gathered in inference mode have no gradient afterwards.
                found.append(draw(pipe, texts, seeds, self.how.steps, self.arguments, inference=False))
        return (np.concatenate(found) * 255).round().clip(0, 255).astype(np.uint8)
