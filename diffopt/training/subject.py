"""What is trained: the calibrated backbones with their quantizers in place, or adapters beside their weights."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch

from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.pipeline import PipelineFile
from diffopt.machine.memory import release
from diffopt.pipeline.foreign import config_of
from diffopt.pipeline.open import by_name, family_of
from diffopt.quantization import checkpoint as checkpoints
from diffopt.quantization.weight_scales import Found
from diffopt.stage import Context
from diffopt.training.adapters import Adapters
from diffopt.training.scales import Scales, is_scale
from diffopt.training.shards import Shards
from diffopt.training.task import Task


class Subject:
    """`whole` is all of what `open_backbone` gives, `backbones` are its parts by the pipeline's names.

    Opened before the processes of a training know of each other: modelopt would have them agree on every scale, which are
    the same. Raises PlanError for adapters of no layer.
    """

    def __init__(self, ctx: Context, task: Task, in_shards: bool):
        """`in_shards` leaves it on the CPU, from where `cut` takes it."""
        self.family = family_of(task.pipeline)
        self.whole = checkpoints.restore(ctx, task.pipeline, task.checkpoint)
        if in_shards:  # scales are derived where they were made; a GPU then gets its part of each block from the CPU
            self.whole.to("cpu")
            release()
        self._stored = _cast(self.whole, task.train.weights)
        self.whole.requires_grad_(True)
        layers, lora = CheckpointFile.read(task.checkpoint.path).layers, task.train.lora
        self.adapters = Adapters(self.whole, layers, lora, task.seed) if lora else None
        scales = Scales(self.whole, task.train.scales) if task.train.scales != "fixed" else None
        self.scales = scales if scales and scales.layers else None  # a sweep may ask it of a format that has none
        pinned = PipelineFile.read(task.pipeline.path)
        self.backbones: dict[str, Any] = {**by_name(pinned, self.whole)}
        self.levels = _levels(ctx, pinned)
        """By backbone the noise levels that it is called at."""

    def cut(self, shards: Shards) -> None:
        """Leave this process's part of each backbone."""
        for backbone in self.backbones.values():
            shards.cut(backbone, self.family)

    @cached_property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """By its name in `whole` each parameter that has a gradient: of what is to be cut, ask afterwards."""
        return {n: p for n, p in self.whole.named_parameters() if p.requires_grad}

    def learned(self, shards: Shards | None) -> Found:
        """The scales that were trained, as weight_scales.py keeps them; every process has to ask."""
        return self.scales.found(shards.whole if shards else _same, self._stored) if self.scales else {}

    def weights(self, shards: Shards | None, keep: bool, scales: Found) -> dict[str, torch.Tensor]:
        """What was trained, by its name in `whole`: whole weights with the adapters added, on the CPU, in the precision that
        they were stored in, as they are beside the `scales` that were learned.

        Ends the training of adapters. Every process has to ask; where not to `keep` there is nothing in it, and of a weight
        that was put together from shards nothing is left in memory.
        """
        whole_of = shards.whole if shards else _same
        found = self._trained(whole_of)
        if own := self.scales:
            found = ((n, own.rounded(n, x, whole_of, scales)) for n, x in found if not is_scale(n))
        return {n: x.detach().to(self._stored[n]).cpu() for n, x in found if keep}

    def _trained(self, whole_of: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """With the weights whose scales alone were trained."""
        if self.adapters is None:
            yield from ((n, whole_of(p)) for n, p in self.parameters.items())
            return
        yield from self.adapters.merge(whole_of)
        for name, layer in self.scales.layers.items() if self.scales else ():
            if name not in self.adapters.layers:
                yield f"{name}.weight", whole_of(layer.weight)


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def _levels(ctx: Context, pinned: PipelineFile) -> dict[str, tuple[float, float]]:
    """The noise levels of each backbone: of two the first is called from `boundary_ratio` on, as Wan 2.2's are."""
    names = pinned.backbones
    if len(names) == 1:
        return {names[0]: (0.0, 1.0)}
    boundary = config_of(ctx.locate(pinned.source) / "model_index.json")["boundary_ratio"]
    return {names[0]: (boundary, 1.0), names[1]: (0.0, boundary)}


def _cast(whole: torch.nn.Module, dtype: str | None) -> dict[str, torch.dtype]:
    """Put everything into the precision that it is trained in; what it was, by name."""
    before = {n: x.dtype for n, x in [*whole.named_parameters(), *whole.named_buffers()]}
    if dtype:
        for _, x in [*whole.named_parameters(), *whole.named_buffers()]:
            if x.is_floating_point():
                x.data = x.data.to(getattr(torch, dtype))
    return before
