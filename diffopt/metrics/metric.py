"""What a metric is, and which there are. Importing this imports no library of theirs."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Metric:
    name: str
    title: str
    unit: str
    paired: bool
    """True: a distance between candidate and reference. False: a score of one picture, given for both."""
    better: str
    """`higher` or `lower`."""

    def scorer(self, clip: Any, device: str) -> Callable[..., list[float]]:
        """`scorer` of the module diffopt.metrics.NAME: prompts, candidates [, references] -> a value per picture."""
        found: Callable[..., list[float]] = import_module(f"diffopt.metrics.{self.name}").scorer(clip, device)
        return found


METRICS = {
    m.name: m
    for m in (
        Metric("psnr", "PSNR", "dB", paired=True, better="higher"),
        Metric("ssim", "SSIM", "", paired=True, better="higher"),
        Metric("clip", "CLIP score", "", paired=False, better="higher"),
    )
}
