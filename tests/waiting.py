"""Waiting for what a process or a thread does, however slow the machine is: pytest's timeout alone ends what hangs."""

import time
from collections.abc import Callable


def until(holds: Callable[[], object], look: float = 0.02) -> None:
    """Return once it holds, looking every `look` seconds."""
    while not holds():
        time.sleep(look)
