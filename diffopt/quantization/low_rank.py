"""The low-rank part that SVDQuant keeps beside a weight, fitted in turn with the rounding of the rest.

Model-Optimizer takes the best part of the weight itself and rounds the rest, once. Then that part is not the best any more: of
the weight without its rounded rest another is nearer, and what it leaves rounds with less loss. LoftQ (arXiv 2310.08659)
alternates so, for adapters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from diffopt.quantization.static_blocks import rounded
from diffopt.quantization.weight_scales import Search, lost, ragged

Parts = tuple[torch.Tensor, torch.Tensor]
"""B [out, rank] and A [rank, in]."""

MORE, PRODUCTS = 8, 4
"""Directions beside those that are kept, and how often products with them are made: torch.svd_lowrank's `q` and `niter`."""


@dataclass(frozen=True)
class Smoothed:
    """A layer, or layers of one input, whose input is multiplied by `smoothing` before."""

    name: str
    weight: torch.Tensor
    """[out, in], smoothed."""
    smoothing: torch.Tensor
    """[in]."""
    peak: Callable[[torch.Tensor], torch.Tensor]
    """The maximum that a weight like this one is rounded by."""


def start(weight: torch.Tensor, rank: int) -> Parts:
    """Near the best parts of a weight [out, in] of a higher rank, in FP64 and then in its precision.

    By a few products with a random matrix, of the same numbers each time. Model-Optimizer's whole SVD takes twenty times as
    long for 3072 inputs and outputs, and fitted in turn with the rounding both end at as small a loss.
    """
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # all that the seed is set of
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(weight.double(), min(rank + MORE, *weight.shape), niter=PRODUCTS)
    b, a = u[:, :rank] * s[:rank], v[:, :rank].T
    return b.to(weight.dtype).contiguous(), a.to(weight.dtype).contiguous()


class Alternation:
    """A part fitted and the rest rounded, in turn, so many times at most, as long as less is lost: by the local Hessian or by
    squares, as scales are sought."""

    def __init__(self, times: int, search: Search):
        self.times = times
        self._search = search

    def __call__(self, layer: Smoothed, parts: Parts) -> Parts:
        """From those near the best of the weight. Of one of no higher rank, which leaves nothing to round, these stay."""
        if ragged(layer.weight) or len(parts[1]) > min(layer.weight.shape):
            return parts
        hessian = self._search.hessian(layer.name, layer.smoothing)
        least, rest = self._rounded(layer, parts, hessian)
        for _ in range(self.times):
            better = _step(layer.weight - rest, parts)
            less, rest = self._rounded(layer, better, hessian)
            if not less < least:
                break
            least, parts = less, better
        return parts

    def _rounded(self, layer: Smoothed, parts: Parts, hessian: torch.Tensor | None) -> tuple[float, torch.Tensor]:
        """What is lost where the rest of the weight is rounded, and the rest rounded, FP32 [out, in]."""
        rest = layer.weight - torch.matmul(*parts)
        found = rounded(rest.float(), self._search.scales(rest, layer.peak(rest), hessian))
        return lost(found - rest.float(), hessian), found


def _step(target: torch.Tensor, parts: Parts) -> Parts:
    """One of subspace iteration towards the best parts of the target [out, in], in FP64 as Model-Optimizer's SVD.

    Eight such steps, each followed by a rounding, end where eight whole SVDs do, in a part of the time. A's rows are
    orthonormal as the SVD's are: what a layer computes between A and B is then no longer than its input, which FP16 holds.
    """
    _, a = parts
    whole = target.double()
    columns, _ = torch.linalg.qr(whole @ a.double().T)
    rows, sizes = torch.linalg.qr((columns.T @ whole).T)
    return (columns @ sizes.T).to(a.dtype).contiguous(), rows.T.to(a.dtype).contiguous()
