"""SIGTERM and SIGHUP as an exception: what a step was writing is cleared away, and a word is said."""

import signal
from types import FrameType

from diffopt.errors import Terminated

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def catch() -> None:
    """Raise Terminated in this process's main thread; the second such signal ends it at once. One that is ignored, as under
    nohup, stays so."""
    for number in SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    Terminated.received = number
    raise Terminated(number)
