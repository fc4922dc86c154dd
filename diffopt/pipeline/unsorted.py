"""HunyuanVideo 1.5 where nothing can be sorted, in a graph and on the meta device: its text stays as it is given."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.transformers import transformer_hunyuan_video15


@contextlib.contextmanager
def unsorted_texts() -> Iterator[None]:
    """The backbone moves the padding of each prompt behind its tokens, by masks, so that lengths follow from numbers, which
    neither a graph has nor the meta device. Its text has no positions, and attention leaves padding out: the order changes
    nothing but last bits.

    Within it all rows are taken at once, tokens first, and padding is zeros where it stands.
    """
    module: Any = transformer_hunyuan_video15
    module.torch, module.zip = _Torch(), _at_once
    try:
        yield
    finally:
        module.torch = torch
        del module.zip


def _at_once(*texts: torch.Tensor) -> Iterator[tuple[Any, ...]]:
    """For a zip over the rows of three texts, each followed by its mask: one row for all."""
    found: list[Any] = []
    for text, mask in zip(texts[::2], texts[1::2], strict=True):
        shown = _Mask(mask.transpose(0, 1))
        found += [_Text(text.transpose(0, 1)), shown]
    yield tuple(found)


class _Mask:
    """Bool [tokens, b]; `inverted` of what it leaves out."""

    def __init__(self, mask: torch.Tensor, inverted: bool = False):
        self.mask, self.inverted = mask, inverted

    def __invert__(self) -> "_Mask":
        return _Mask(self.mask, not self.inverted)

    def __getitem__(self, by: "_Mask") -> torch.Tensor | None:
        return None if by.inverted else self.mask


class _Text:
    """[tokens, b, width]."""

    def __init__(self, text: torch.Tensor):
        self.text = text

    def __getitem__(self, by: _Mask) -> torch.Tensor | None:
        return None if by.inverted else self.text * by.mask.unsqueeze(-1).to(self.text.dtype)


class _Torch:
    """torch, of which these leave out what is None."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros_like(x: torch.Tensor | None, **how: Any) -> torch.Tensor | None:
        return None if x is None else torch.zeros_like(x, **how)

    @staticmethod
    def cat(parts: list[torch.Tensor | None], dim: int) -> torch.Tensor:
        return torch.cat([x for x in parts if x is not None], dim)

    @staticmethod
    def stack(rows: list[torch.Tensor], dim: int | None = None) -> torch.Tensor:
        """Of the rows of texts, which it is given without a `dim`, and are one."""
        return torch.stack(rows, dim) if dim is not None else rows[0].transpose(0, 1)
