"""The local Hessians of linear layers: of every 16 inputs x that share a block of the weight, the sum of x x' over all rows.

What a layer's weights being off does to its output is told by them, block by block (block_search.py). They are sums over
calls: those of a chunk are added up as they come, in FP32 as modelopt 0.47 adds them, and those of chunks in FP64 in the
prompts' order, so that it makes no difference which job observed which chunk when.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from diffopt.quantization.block_fake_quant import BLOCK
from diffopt.quantization.observer import Forward, instead

Hessians = dict[str, torch.Tensor]
"""Layer -> FP32 [inputs / 16, 16, 16]: the sums; with `ROWS` behind the name FP64 []: how many rows they are of."""

ROWS = ".rows"
PART, PARTS = 256, 64
"""A product on a GPU is made in parts of at least so many rows, and in at most so many parts."""


@contextmanager
def correlated(backbone: torch.nn.Module) -> Iterator[Hessians]:
    """Record, while the block runs the backbone in full precision, into the mapping that is yielded.

    Of every linear layer whose inputs are whole blocks. It is complete when the block is left.
    """
    sums, found = _Sums(), Hessians()
    with ExitStack() as stack:
        for name, module in backbone.named_modules():
            if isinstance(module, torch.nn.Linear) and module.in_features % BLOCK == 0:
                stack.enter_context(instead(module, sums.watched(name, module.forward)))
        yield found
    found |= sums.finished()


class _Sums:
    """By layers that read one tensor, as query, key and value do, the sum of its products: made once, and kept once."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, ...], tuple[torch.Tensor, int]] = {}
        self._last: tuple[str, torch.Tensor, torch.Tensor] | None = None
        """Of the tensor that was read last the parent of the layers that did, itself, and its products."""
        self._readers: list[str] = []

    def watched(self, name: str, forward: Forward) -> Forward:
        parent = name.rpartition(".")[0]

        def seen(*args: Any, **kwargs: Any) -> Any:
            x = args[0] if args else kwargs["input"]
            if x.numel():
                last = self._last
                if last is None or last[1] is not x or last[0] != parent or name in self._readers:
                    self._add()
                    self._last = parent, x, products(x.detach() if x.requires_grad else x)
                self._readers.append(name)
            return forward(*args, **kwargs)

        return seen

    def _add(self) -> None:
        """Nobody else reads what was read last."""
        if self._last is None:
            return
        _, x, more = self._last
        readers, rows = tuple(self._readers), x.numel() // x.shape[-1]
        if readers in self._of:
            total, before = self._of[readers]
            self._of[readers] = total.add_(more), before + rows
        else:
            self._of[readers] = more, rows
        self._last, self._readers = None, []

    def finished(self) -> Hessians:
        self._add()
        found: Hessians = {}
        for readers, (total, rows) in self._of.items():
            for name in readers:
                counted = torch.tensor(rows, dtype=torch.float64)
                found[name] = found[name] + total if name in found else total.clone()  # no file has one for two
                found[name + ROWS] = found[name + ROWS] + counted if name + ROWS in found else counted
        return found


def products(x: torch.Tensor, parts: int | None = None) -> torch.Tensor:
    """FP32 [n / 16, 16, 16] of [..., n]: the sum over rows of every 16 numbers times themselves.

    On a GPU by so many parts of the rows (None: as many as fit) that are added up, which keeps it busy: one product of all
    rows is the work of few of its processors. Numbers of 16 bits are multiplied as they are, which FP32 holds exactly.
    """
    rows = x.numel() // x.shape[-1]
    parts = parts or (_parts(rows) if x.is_cuda else 1)
    short = x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)
    dense = (x if short else x.float()).contiguous()
    # Every so many rows side by side are one row, of which blocks follow each other: a view, and one batch of products.
    width = parts * x.shape[-1]
    blocks = dense.as_strided((width // BLOCK, BLOCK, rows // parts), (BLOCK, 1, width))
    across = blocks.transpose(-1, -2)
    found = torch.ops.aten.bmm.dtype(blocks, across, torch.float32) if short else blocks @ across
    summed: torch.Tensor = found.unflatten(0, (parts, -1)).sum(0) if parts > 1 else found
    return summed


def _parts(rows: int) -> int:
    """The largest power of two that divides the rows, with PART of them in each."""
    parts = 1
    while parts < PARTS and rows % (2 * parts) == 0 and rows // (2 * parts) >= PART:
        parts *= 2
    return parts


def merge(parts: list[Hessians]) -> Hessians:
    """Layer -> FP32 [inputs / 16, 16, 16]: the means over the rows of all parts, which are taken in their order."""
    if len({frozenset(p) for p in parts}) != 1:
        raise ValueError("the chunks observed different layers")
    means = {}
    for name in sorted(n for n in parts[0] if not n.endswith(ROWS)):
        if len(parts) == 1:
            means[name] = parts[0][name] / float(parts[0][name + ROWS])
        else:
            rows = sum(float(p[name + ROWS]) for p in parts)
            means[name] = (sum((p[name].double() for p in parts), torch.zeros(())) / rows).float()
    return means


def smoothed(hessian: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """That of inputs that are multiplied by `scale` [inputs]."""
    parts = scale.float().reshape(-1, BLOCK)
    return hessian * parts[:, :, None] * parts[:, None, :]
