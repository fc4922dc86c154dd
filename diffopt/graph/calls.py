"""The calls that a backbone's graph is to take: their inputs, and between which batches."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from diffopt.models.family import Family, Json, Size


@dataclass(frozen=True)
class Calls:
    """Of one backbone, at one size."""

    backbone: torch.nn.Module
    family: Family
    vae: Json
    extent: Size
    """Of one row."""
    rows: int
    """That a picture has."""
    batch_size: int
    """Pictures of a usual call."""
    max_batch_size: int | None
    """Pictures of the largest; None where every call is a usual one."""

    @property
    def dynamic(self) -> bool:
        return self.max_batch_size is not None

    @cached_property
    def usual(self) -> dict[str, torch.Tensor]:
        """The inputs of a usual call, without those that are constants of the graph."""
        return {n: x for n, x in self._inputs(self.batch_size).items() if isinstance(x, torch.Tensor)}

    @property
    def batched(self) -> dict[str, int]:
        """By input the axis along which its batch lies."""
        return {n: 0 for n, x in self.usual.items() if x.dim() and n not in self.family.unbatched}

    def traced(self) -> dict[str, Any]:
        """What the graph is traced with, constants among it."""
        # Traced with one row a broadcast along the batch axis would not be told from a fixed axis.
        return self._inputs(max(2, self.batch_size) if self.dynamic else self.batch_size)

    @property
    def profile(self) -> dict[str, dict[str, list[int]]] | None:
        """The shapes of each batched input in calls `min`, `opt` and `max`; None where every call is a usual one."""
        if self.max_batch_size is None:
            return None
        batches = {"min": self.rows, "opt": self.batch_size * self.rows, "max": self.max_batch_size * self.rows}
        return {n: {k: _shape(self.usual[n], axis, b) for k, b in batches.items()} for n, axis in self.batched.items()}

    @property
    def shapes(self) -> dict[str, dict[str, list[int]]]:
        """The same by call and input; empty where every call is a usual one."""
        profile = self.profile
        return {} if profile is None else {k: {n: by[k] for n, by in profile.items()} for k in ("min", "opt", "max")}

    def _inputs(self, pictures: int) -> dict[str, Any]:
        """On the backbone's device."""
        device = next(self.backbone.parameters()).device
        found = self.family.inputs(self.backbone, self.vae, replace(self.extent, batch=pictures * self.rows))
        return {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in found.items()}


def _shape(x: torch.Tensor, axis: int, extent: int) -> list[int]:
    """The shape of `x` with another extent of one axis."""
    return [extent if i == axis else n for i, n in enumerate(x.shape)]
