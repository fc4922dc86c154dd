"""The calls that a backbone's graph is to take: their inputs, and between which batches."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from diffopt.errors import GateError
from diffopt.files.graph import OUTPUT
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
    """Pictures of the largest; None where every call has as many."""
    smallest: Size | None = None
    """The extent of one row of the smallest pictures; None where all have one size."""
    largest: Size | None = None

    @property
    def dynamic(self) -> bool:
        """Whether the batch axis is."""
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

    @cached_property
    def sizes(self) -> dict[str, dict[str, list[int]]]:
        """By call, `min`, `opt` and `max`, the shapes of the inputs at its size and a usual batch."""
        extents = {"min": self.smallest or self.extent, "opt": self.extent, "max": self.largest or self.extent}
        return {k: self._shapes(extent) for k, extent in extents.items()}

    @property
    def size_axes(self) -> dict[str, dict[int, str]]:
        """The axes that differ between sizes, by input; the output has those of what is denoised."""
        if self.smallest is None:
            return {}
        shapes = [*self.sizes.values()]
        axes = {n: [i for i in range(len(shapes[0][n])) if len({s[n][i] for s in shapes}) > 1] for n in self.usual}
        found = {n: {i: f"{n}.{i}" for i in own} for n, own in axes.items() if own}
        noisy = found.get(self.family.noisy, {})
        return found | {OUTPUT: {i: name.replace(self.family.noisy, OUTPUT) for i, name in noisy.items()}}

    @property
    def profile(self) -> dict[str, dict[str, list[int]]] | None:
        """The shapes of each dynamic input in calls `min`, `opt` and `max`; None where every call is a usual one."""
        if not self.dynamic and self.smallest is None:
            return None
        usual = self.batch_size * self.rows
        batches = dict.fromkeys(("min", "opt", "max"), usual)
        if self.max_batch_size is not None:
            batches |= {"min": self.rows, "max": self.max_batch_size * self.rows}
        batched = self.batched if self.dynamic else {}
        names = [n for n in self.usual if n in batched or n in self.size_axes]
        return {n: {k: _shape(self.sizes[k][n], batched.get(n), rows) for k, rows in batches.items()} for n in names}

    @property
    def shapes(self) -> dict[str, dict[str, list[int]]]:
        """The same by call and input; empty where every call is a usual one."""
        profile = self.profile
        return {} if profile is None else {k: {n: by[k] for n, by in profile.items()} for k in ("min", "opt", "max")}

    def _shapes(self, extent: Size) -> dict[str, list[int]]:
        """Of the inputs of a usual batch at that size of a row. Raises GateError where a constant is another than usual."""
        found = self.usual if extent == self.extent else self._inputs(self.batch_size, extent)
        for name, x in found.items():
            if not isinstance(x, torch.Tensor) and x != self._constants.get(name):
                raise GateError(
                    f"export: {name} is a constant of the graph that differs between sizes (got {x} and "
                    f"{self._constants.get(name)}); set export.heights=null, export.widths=null and export.frames=null"
                )
        return {n: [*x.shape] for n, x in found.items() if isinstance(x, torch.Tensor)}

    @cached_property
    def _constants(self) -> dict[str, Any]:
        return {n: x for n, x in self._inputs(self.batch_size).items() if not isinstance(x, torch.Tensor)}

    def _inputs(self, pictures: int, extent: Size | None = None) -> dict[str, Any]:
        """On the backbone's device."""
        device = next(self.backbone.parameters()).device
        extent = replace(extent or self.extent, batch=pictures * self.rows)
        found = self.family.inputs(self.backbone, self.vae, extent)
        return {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in found.items()}


def _shape(shape: list[int], axis: int | None, extent: int) -> list[int]:
    """`shape` with another extent of one axis."""
    return [extent if i == axis else n for i, n in enumerate(shape)]
