"""Timing a pipeline: seconds per picture and milliseconds per denoising step."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from diffopt.files.interval import CallInterval
from diffopt.files.latency import Speedup, Spread, Timing
from diffopt.metrics.intervals import of_calls
from diffopt.pipeline.draw import draw
from diffopt.pipeline.texts import Texts
from diffopt.runtimes import Running


class Stopwatch:
    """Times calls of one running pipeline at its own batch size, or 1. A GPU is waited for before the clock is read."""

    def __init__(
        self,
        run: Running,
        encode: Callable[[Sequence[str]], Texts],
        prompts: Sequence[str],
        steps: int,
        arguments: dict[str, Any],
        seed: int,
    ):
        self.run = run
        self.encode = encode
        self.batch = run.batch or 1
        self.prompts = [prompts[i % len(prompts)] for i in range(self.batch)]
        self.seeds = [seed + i for i in range(self.batch)]
        self.steps = steps
        self.arguments = arguments
        self.calls: list[float] = []
        """Seconds of each timed call, text encoding and decoding included."""
        self.between: list[list[float]] = []
        """Seconds of each denoising step but the first of each timed call, which text encoding precedes."""

    def warm(self) -> None:
        self._call()

    def time(self) -> None:
        seconds, ends = self._call()
        self.calls.append(seconds)
        self.between.append(list(np.diff(ends)))

    def _call(self) -> tuple[float, list[float]]:
        ends: list[float] = []
        started = _now()
        texts = self.encode(self.prompts)
        draw(self.run.pipe, texts, self.seeds, self.steps, self.arguments, on_step=lambda: ends.append(_now()))
        return _now() - started, ends


def summary(watch: Stopwatch) -> Timing:
    """Median and 10th and 90th percentile, and every call, in seconds per picture and milliseconds per step."""
    steps = [1e3 * s for call in watch.between for s in call]
    saved = watch.run.saved()
    return Timing(
        seconds_per_image=_spread([s / watch.batch for s in watch.calls]),
        milliseconds_per_step=_spread(steps) if steps else None,
        seconds_per_call=[round(s, 6) for s in watch.calls],
        cache=saved.summary() if saved else None,
    )


def compare(baseline: Stopwatch, candidate: Stopwatch) -> Speedup:
    """How many times faster the candidate is, call by call in turn: mean ratio and its 95% interval."""
    ratios = np.array(baseline.calls) / np.array(candidate.calls)
    return Speedup(of_calls(ratios), _step_ratio(baseline, candidate))


def _step_ratio(baseline: Stopwatch, candidate: Stopwatch) -> CallInterval | None:
    if not any(baseline.between):
        return None
    medians = [[float(np.median(call)) for call in watch.between] for watch in (baseline, candidate)]
    return of_calls(np.array(medians[0]) / np.array(medians[1]))


def _spread(values: list[float]) -> Spread:
    low, middle, high = np.percentile(values, [10, 50, 90])
    return Spread(round(float(middle), 6), round(float(low), 6), round(float(high), 6))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
