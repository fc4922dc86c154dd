"""Extremes by denoising step: what INT8 convolutions of a UNet can draw their input's scale from."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from diffopt.groups.calib import Collect, counted

Steps = dict[str, torch.Tensor]
"""Quantizer name -> [4, steps], FP64: the largest and smallest of the batches' maxima, their sum, and their number."""


class StepExtremes:
    """Collects them. A batch's maximum in a step is over all backbone calls of that step, however many the scheduler or
    the guidance makes: the steps are those that the pipeline itself counts."""

    def __init__(self) -> None:
        self._now: dict[str, torch.Tensor] = {}
        self._steps: list[dict[str, torch.Tensor]] = []

    def see(self, name: str, peak: torch.Tensor) -> None:
        """The absolute maxima, of any shape, of one input in one backbone call."""
        peak = peak.amax()
        self._now[name] = torch.maximum(self._now[name], peak) if name in self._now else peak

    def end(self) -> None:
        """A denoising step has ended."""
        peaks = torch.stack(list(self._now.values())).double().cpu() if self._now else ()
        self._steps.append(dict(zip(self._now, peaks, strict=True)))
        self._now = {}

    def table(self, batches: int) -> Steps:
        """Of so many batches, each of which took the same steps. Raises ValueError when they did not."""
        if len(self._steps) % batches or len({frozenset(s) for s in self._steps}) != 1:
            raise ValueError(f"{len(self._steps)} denoising steps of {batches} batches are not the same steps in each")
        found = {}
        for name in sorted(self._steps[0]):
            peaks = torch.stack([s[name] for s in self._steps]).reshape(batches, -1)
            found[name] = torch.stack([peaks.amax(0), peaks.amin(0), peaks.sum(0), torch.full_like(peaks[0], batches)])
        return found


def merge(chunks: list[Steps]) -> Steps:
    """The statistics of all chunks together. Raises ValueError when they come from different models or step counts."""
    if len({tuple(sorted((name, x.shape[1]) for name, x in c.items())) for c in chunks}) != 1:
        raise ValueError("the chunks observed different convolutions or numbers of denoising steps")
    merged = {}
    for name in sorted(chunks[0]):
        high, low, total, number = torch.stack([c[name] for c in chunks]).unbind(1)
        merged[name] = torch.stack([high.amax(0), low.amin(0), total.sum(0), number.sum(0)])
    return merged


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


def extremes_of(stats: Path, percentile: float, method: Collect) -> dict[str, torch.Tensor]:
    """The extremes of calibration statistics; the convolution inputs' as reduced over the steps, where those were kept."""
    found = load_file(stats / "extremes.safetensors")
    if (stats / "steps.safetensors").is_file():
        for name, table in load_file(stats / "steps.safetensors").items():
            found[name] = reduce(table, percentile, method).to(found[name].dtype)
    return found
