"""Contenders in turn, and what became of each in figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from diffopt.files.bench import Contender, GpuState, Memory, Rate, Work
from diffopt.files.latency import Speedup, Spread
from diffopt.groups.cache import CacheView
from diffopt.groups.eval import OF_GRAPHS
from diffopt.machine import gpu_state
from diffopt.machine.memory import release
from diffopt.metrics.intervals import of_calls
from diffopt.quality.payoff import floor, floor_milliseconds, verdict
from diffopt.runtimes.arithmetic import Seen
from diffopt.runtimes.contenders import Entry
from diffopt.runtimes.hits import check_hits
from diffopt.runtimes.lap import Lap, Script
from diffopt.runtimes.side_by_side import Open, Opener
from diffopt.stage import Context


@dataclass
class Timed:
    """An open contender and its calls."""

    open: Open
    first: Lap
    kept: int
    """Bytes of a GPU's memory that the first call took and did not give back, such as CUDA graphs'."""
    laps: list[Lap] = field(default_factory=list)

    @property
    def entry(self) -> Entry:
        return self.open.entry

    def play(self, script: Script) -> Lap:
        return script.play(self.open.run.pipe, self.open.device)


def opened(
    opener: Opener, entries: Sequence[Entry], cache: CacheView | None, script: Script, watched: str
) -> tuple[list[Timed], Seen]:
    """All of them, each with its first picture, in the order of `entries`; and the calls that `watched` made in its own.

    The native ones are opened first: the weights that theirs are quantized from need room for that long.
    """
    seen, found = Seen(), {}
    for entry in sorted(entries, key=lambda e: e.way != "native"):
        made = opener.open(entry, cache)
        before = _reserved()
        with seen.watching(made.run.pipe, opener.pinned.backbones if entry.name == watched else ()):
            first = script.play(made.run.pipe, made.device)
        found[entry] = Timed(made, first, max(_reserved() - before, 0))
    return [found[entry] for entry in entries], seen


def timed(
    ctx: Context, there: Sequence[Timed], script: Script, warmup: int, repeats: int
) -> tuple[GpuState | None, GpuState | None]:
    """Call by call, so that a change of the machine's speed meets all of them. Returns the GPU's state before and after.

    Raises GateError for a cache that never hit.
    """
    for _ in range(warmup):
        for each in there:
            each.play(script)
    before = gpu_state.state()
    with ctx.progress(repeats) as tick:
        for _ in range(repeats):
            for each in there:
                each.laps.append(each.play(script))
            tick()
    after = gpu_state.state()
    for each in there:
        if each.open.cache and (saved := each.open.run.saved()):
            check_hits(each.open.cache, saved)
    return before, after


@dataclass(frozen=True)
class Results:
    """All contenders' calls beside each other's."""

    timed: Sequence[Timed]
    base: str
    batch: int
    steps: int
    format: str | None
    dtype: str
    work: Work | None
    rates: tuple[Rate, ...]

    def contenders(self) -> tuple[Contender, ...]:
        gpu = any(t.open.rest is not None for t in self.timed)
        base, eager = (Entry(way).title(self.format, self.dtype) for way in (self.base, "eager"))
        return tuple(replace(c, verdict=verdict(c, base, eager, gpu)) for c in map(self._contender, self.timed))

    def _contender(self, timed: Timed) -> Contender:
        steps = [lap.step for lap in timed.laps if lap.step is not None]
        saved, opened = timed.open.run.saved(), timed.open
        cache = saved.summary() if saved else None
        step = spread(steps) if steps else None
        least = None
        if self.work and opened.entry.way not in OF_GRAPHS:
            least = floor_milliseconds(self.work, self.rates, opened.entry.way == "native")
        calls = [lap.call_bytes for lap in timed.laps if lap.call_bytes is not None]
        return Contender(
            name=timed.entry.name,
            title=self._title(timed),
            opening=round(opened.seconds, 3),
            first_picture=round(timed.first.seconds, 3),
            seconds_per_image=spread([lap.seconds / self.batch for lap in timed.laps]),
            milliseconds_per_step=step,
            seconds_per_call=[round(lap.seconds, 6) for lap in timed.laps],
            memory=Memory(weights=opened.weights, rest=opened.rest, call=max(calls) + timed.kept if calls else None),
            over_base=self._beside(timed, self.base),
            over_eager=self._beside(timed, "eager"),
            floor=floor(least, step.median if step else None, cache.computed if cache else 1.0, self.steps),
            cache=cache,
        )

    def _title(self, timed: Timed) -> str:
        return timed.entry.title(self.format, self.dtype)

    def _beside(self, timed: Timed, name: str) -> Speedup | None:
        other = next((t for t in self.timed if t.entry.name == name), None)
        return None if other is None or other is timed else speedup(other.laps, timed.laps)


def speedup(base: Sequence[Lap], laps: Sequence[Lap]) -> Speedup:
    """How many times as fast, of the two calls of each turn: the mean ratio and its 95% interval."""
    whole = [a.seconds / b.seconds for a, b in zip(base, laps, strict=True)]
    steps = [a.step / b.step for a, b in zip(base, laps, strict=True) if a.step is not None and b.step is not None]
    return Speedup(of_calls(np.array(whole)), of_calls(np.array(steps)) if steps else None)


def spread(values: Sequence[float]) -> Spread:
    low, middle, high = np.percentile(values, [10, 50, 90])
    return Spread(round(float(middle), 6), round(float(low), 6), round(float(high), 6))


def _reserved() -> int:
    """Bytes that torch has of the GPU with nothing to spare."""
    release()
    return torch.cuda.memory_reserved() if torch.cuda.is_available() else 0
