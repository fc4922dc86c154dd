"""Extremes by denoising step: what INT8 convolutions of a UNet can draw their input's scale from."""

import torch

from diffopt.groups.calib import Collect, counted

Steps = dict[str, torch.Tensor]
"""Quantizer name -> [4, steps], FP64: the largest and smallest of the batches' maxima, their sum, and their number."""

EMPTY = torch.tensor([-torch.inf, torch.inf, 0, 0], dtype=torch.float64)


class StepExtremes:
    """Collects them. A batch's maximum in a step is over all backbone calls of that step, however many the scheduler or
    the guidance makes: the steps are those that the pipeline itself counts."""

    def __init__(self) -> None:
        self._now: dict[str, torch.Tensor] = {}
        self._rows: dict[str, list[torch.Tensor]] = {}
        self._step = 0

    def begin(self) -> None:
        """A batch begins: its first denoising step is next."""
        self._step, self._now = 0, {}

    def see(self, name: str, peak: torch.Tensor) -> None:
        """The absolute maxima, of any shape, of one input in one backbone call."""
        peak = peak.amax()
        self._now[name] = torch.maximum(self._now[name], peak) if name in self._now else peak

    def end(self) -> None:
        """A denoising step of the batch has ended."""
        if self._now:
            peaks = torch.stack(list(self._now.values())).double().cpu()
            for name, peak in zip(self._now, peaks, strict=True):
                rows = self._rows.setdefault(name, [])
                rows += [EMPTY for _ in range(self._step + 1 - len(rows))]
                rows[self._step] = _joined([rows[self._step], torch.stack([peak, peak, peak, torch.ones_like(peak)])])
        self._step, self._now = self._step + 1, {}

    def table(self) -> Steps:
        return {name: torch.stack(rows, 1) for name, rows in sorted(self._rows.items())}


def merge(chunks: list[Steps]) -> Steps:
    """The statistics of all chunks together. Raises ValueError when they come from different models or step counts."""
    if len({tuple(sorted((name, x.shape[1]) for name, x in c.items())) for c in chunks}) != 1:
        raise ValueError("the chunks observed different convolutions or numbers of denoising steps")
    return {name: _joined([c[name] for c in chunks]) for name in sorted(chunks[0])}


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Of several [4, ...] one; NaN stays NaN."""
    high, low, total, number = torch.stack(parts).unbind(1)
    return torch.stack([high.amax(0), low.amin(0), total.sum(0), number.sum(0)])


def reduce(table: torch.Tensor, percentile: float, method: Collect) -> torch.Tensor:
    """One maximum, FP64 [1], of a [4, steps] table: over the first share of the steps, by `calib.collect_method`."""
    high, low, total, number = table[:, : max(1, counted(table.shape[1], percentile))]
    found = {
        "default": high.amax(),
        "global_min": low.amin(),
        "min-max": high.amin(),
        "min-mean": (total / number).amin(),
        "mean-max": high.mean(),
    }
    one: torch.Tensor = found[method].reshape(1)
    return one
