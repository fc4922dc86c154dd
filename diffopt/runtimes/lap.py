"""One call of a pipeline by the clock: seconds of all of it, and of a step by events that the GPU itself records."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from diffopt.pipeline.draw import draw
from diffopt.pipeline.texts import Texts


@dataclass(frozen=True)
class Lap:
    seconds: float
    step: float | None
    """Milliseconds: the mean of the steps but the first, which what comes before the loop precedes; None without such."""
    call_bytes: int | None
    """The most that it took of a GPU's memory beside what was there before."""


@dataclass(frozen=True)
class Script:
    """What every contender draws: the same prompts, seeds and steps."""

    encode: Callable[[], Texts]
    seeds: list[int]
    steps: int
    arguments: dict[str, Any]

    def play(self, pipe: Any, device: str) -> Lap:
        """Draw it by `pipe`, whose backbone computes on `device`.

        On a GPU nothing waits within the loop: an event is queued behind each step, and all are read when the call is over.
        """
        cuda = torch.device(device).type == "cuda"
        ends: list[Any] = []
        before = _settle(cuda)
        started = time.perf_counter()
        texts = {name: x.to(device) for name, x in self.encode().items()}
        draw(pipe, texts, self.seeds, self.steps, self.arguments, on_step=lambda: ends.append(_mark(cuda)))
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        taken = torch.cuda.max_memory_allocated() - before if cuda else None
        return Lap(seconds, _mean_step(ends, cuda), taken)


def _settle(cuda: bool) -> int:
    """Bytes that are allocated now that all work is done; the peak is counted from here."""
    if not cuda:
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _mark(cuda: bool) -> Any:
    if not cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _mean_step(ends: list[Any], cuda: bool) -> float | None:
    """Of a cache's steps some are short, so that their median is of one kind alone."""
    if len(ends) < 2:
        return None
    whole: float = ends[0].elapsed_time(ends[-1]) if cuda else 1e3 * (ends[-1] - ends[0])
    return whole / (len(ends) - 1)
