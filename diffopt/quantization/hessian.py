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


@contextmanager
def correlated(backbone: torch.nn.Module) -> Iterator[Hessians]:
    """Record, while the block runs the backbone in full precision, into the mapping that is yielded.

    Of every linear layer whose inputs are whole blocks. Siblings that read one tensor share what is computed of it.
    """
    found: Hessians = {}
    last: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def watched(name: str, forward: Forward) -> Forward:
        parent = name.rpartition(".")[0]

        def seen(*args: Any, **kwargs: Any) -> Any:
            x = args[0] if args else kwargs["input"]
            if x.numel():
                if not (last and last[0][0] == parent and last[0][1] is x):
                    last[:] = [(parent, x, products(x.detach()))]
                _add(found, name, last[0][2], x.numel() // x.shape[-1])
            return forward(*args, **kwargs)

        return seen

    with ExitStack() as stack:
        for name, module in backbone.named_modules():
            if isinstance(module, torch.nn.Linear) and module.in_features % BLOCK == 0:
                stack.enter_context(instead(module, watched(name, module.forward)))
        yield found
        last.clear()


def products(x: torch.Tensor) -> torch.Tensor:
    """FP32 [n / 16, 16, 16] of [..., n]: the sum over rows of every 16 numbers times themselves."""
    blocks = x.reshape(-1, x.shape[-1]).float().T.reshape(-1, BLOCK, x.numel() // x.shape[-1])
    return blocks @ blocks.transpose(-1, -2)


def _add(found: Hessians, name: str, more: torch.Tensor, rows: int) -> None:
    if name in found:
        found[name] += more
        found[name + ROWS] += rows
    else:
        found[name] = more.clone()
        found[name + ROWS] = torch.tensor(rows, dtype=torch.float64)


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
