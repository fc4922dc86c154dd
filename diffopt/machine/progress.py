"""What a long step shows while it works: a bar on a terminal, elsewhere a line every so often."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from diffopt.machine import output, worker

log = logging.getLogger("diffopt")
EVERY = 20.0
"""Seconds between two lines, so that half a minute never passes without one."""


@dataclass
class Step:
    """What is going on, and how far it is; `total` is 0 where that is not counted."""

    title: str
    started: float = field(default_factory=time.monotonic)
    done: int = 0
    total: int = 0
    shown: Any = None
    """rich's Progress, on a terminal."""

    @property
    def line(self) -> str:
        """`reference 24/64, 40 s`."""
        counted = f" {self.done}/{self.total}" if self.total else ""
        return f"{self.title}{counted}, {time.monotonic() - self.started:.0f} s"


_now: Step | None = None
"""The step that this process is at."""


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Show that something goes on, until the end of the block: within `output.to_log`, where that is used."""
    global _now
    outer, mine = _now, Step(title)
    with ExitStack() as stack:
        if bars := output.terminal().isatty() and not worker.has_place():  # of several jobs each would paint over the others
            mine.shown = stack.enter_context(_painted())
            mine.shown.add_task(title, total=None)
        if not bars or not all(output.beyond(h.stream).isatty() for h in _consoles()):
            stack.enter_context(_told(mine))
        _now = mine
        try:
            yield mine
        finally:
            _now = outer


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Yields a function that counts one of `total`, for the step that goes on, or for one of its own."""
    with ExitStack() as stack:
        now = _now or stack.enter_context(step(title))
        kept, now.done, now.total = (now.done, now.total), 0, total
        task = now.shown.add_task(title, total=total) if now.shown else None
        if now.shown:
            now.shown.update(now.shown.task_ids[0], visible=False)

        def tick() -> None:
            now.done += 1
            if now.shown:
                now.shown.advance(task)

        try:
            yield tick
        finally:
            now.done, now.total = kept
            if now.shown:
                now.shown.remove_task(task)
                now.shown.update(now.shown.task_ids[0], visible=len(now.shown.task_ids) == 1)


@contextmanager
def _told(mine: Step) -> Iterator[None]:
    """A line now and then, by a thread: a tick may take longer than that, and what is not counted has none."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(EVERY):
            if _now is mine:
                _say(mine.line)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _consoles() -> list[Any]:
    """What shows a run's lines; the bar and they need not be on the same terminal."""
    return [h for h in log.handlers if type(h) is logging.StreamHandler]


def _say(line: str) -> None:
    """Where a run's lines go, as its console handler has it; without a run to stderr, as stdout is for results."""
    for handler in _consoles():
        record = log.makeRecord(log.name, logging.INFO, __file__, 0, line, (), None)
        print(handler.format(record), file=output.beyond(handler.stream), flush=True)
    if not log.handlers:
        print(line, file=output.terminal(), flush=True)


def _painted() -> Any:
    """rich's bars on the terminal, which go away at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Counted(MofNCompleteColumn):
        def render(self, task: Any) -> Text:
            return Text() if task.total is None else super().render(task)

    class Remaining(TimeRemainingColumn):
        def render(self, task: Any) -> Text:
            return Text() if task.total is None else super().render(task)

    columns = (TextColumn("  {task.description:12}"), BarColumn(), Counted(), TimeElapsedColumn(), Remaining())
    # Two pictures a second: one more thread is in the way of what is timed.
    return Progress(*columns, console=Console(file=output.terminal()), transient=True, refresh_per_second=2)
