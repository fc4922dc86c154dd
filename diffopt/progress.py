"""Progress bars on a terminal, nothing elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """`items`; on a terminal with a bar, the time passed and the time left, which goes away at the end."""
    terminal = sys.__stderr__  # stages run with sys.stderr redirected to the log
    if terminal is None or not terminal.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("  {task.description:12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=terminal), transient=True) as bar:
        yield from bar.track(items, total=total, description=title)
