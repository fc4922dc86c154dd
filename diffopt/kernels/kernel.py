"""What every kernel is: a module of buffers alone, which can be written to a file and made of one again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
"""By bytes."""


@dataclass(frozen=True)
class Buffer:
    """What one of a kernel's buffers is to be."""

    shape: tuple[int | None, ...]
    """None is any length."""
    dtype: torch.dtype | None
    """None is any that the model may have."""
    needed: bool = True

    def takes(self, tensor: torch.Tensor) -> bool:
        lengths = len(tensor.shape) == len(self.shape)
        lengths = lengths and all(n in (None, m) for n, m in zip(self.shape, tensor.shape, strict=True))
        return lengths and (tensor.dtype == self.dtype if self.dtype else tensor.is_floating_point())


class Kernel(torch.nn.Module):
    """Replaces a layer, or stands in a module beside its layers. It has no parameters: nothing of it can be trained."""

    kind: ClassVar[str]
    """Names the class in files."""
    adds: ClassVar[bool] = False
    """Whether it is put beside layers; else it replaces one."""
    cast: ClassVar[frozenset[str]] = frozenset({"bias"})
    """Buffers in the model's own precision."""

    @classmethod
    def layout(cls, layer: Any) -> dict[str, Buffer]:
        """Its buffers in the place of `layer`, which may be on the meta device; None for one that is added."""
        raise NotImplementedError

    @classmethod
    def of(cls, layer: Any, tensors: Mapping[str, torch.Tensor]) -> Self:
        """The kernel of these buffers, which it takes as they are. Raises ValueError where they do not fit."""
        made = cls.__new__(cls)
        torch.nn.Module.__init__(made)
        layout = cls.layout(layer)
        if wrong := {*tensors} - {*layout}:
            raise ValueError(f"a {cls.kind} kernel has no {min(wrong)}")
        for name, buffer in layout.items():
            tensor = tensors.get(name)
            if tensor is None and buffer.needed:
                raise ValueError(f"its {name} is not there")
            if tensor is not None and not buffer.takes(tensor):
                raise ValueError(f"its {name} does not fit: {list(tensor.shape)} in {str(tensor.dtype).removeprefix('torch.')}")
            made.register_buffer(name, tensor)
        return made

    def put(self, model: torch.nn.Module, name: str) -> None:
        """Into `model`, under this dotted name."""
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, self)

    def _apply(self, fn: Callable[..., torch.Tensor], recurse: bool = True) -> Self:
        """Codes and scales move to another device, and keep their types where a model is cast, which would make numbers of
        the codes: they go as integers, which a cast leaves alone."""
        there = {n: b for n, b in self._buffers.items() if b is not None and n not in self.cast}
        try:
            for name, buffer in there.items():
                self._buffers[name] = buffer.view(INTEGER[buffer.itemsize])
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            for name, buffer in there.items():
                moved = self._buffers[name]
                assert moved is not None
                self._buffers[name] = moved.view(buffer.dtype)
        return self
