"""Libraries say what they have to say to the run's log file, not to the user's terminal."""

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TextIO

log = logging.getLogger("diffopt")
_terminal: TextIO | None = None
_printed: TextIO | None = None


def terminal() -> TextIO:
    """The user's stderr, also while it is to_log."""
    return _terminal or sys.stderr


def beyond(stream: TextIO) -> TextIO:
    """Where `stream` leads when nothing is to_log: a notebook's own has no descriptor that could lead elsewhere."""
    try:
        number = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return stream
    return {1: _printed, 2: _terminal}.get(number) or stream


@contextlib.contextmanager
def to_log() -> Iterator[None]:
    """What is printed or warned within, by Python or by C++, goes to the log at debug level."""
    global _terminal, _printed
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with (
        tempfile.TemporaryFile() as said,
        os.fdopen(os.dup(1), "w") as _printed,
        os.fdopen(os.dup(2), "w") as _terminal,
        open(os.dup(said.fileno()), "w") as text,
        warnings.catch_warnings(record=True) as warned,
        contextlib.redirect_stdout(text),
        contextlib.redirect_stderr(text),
    ):
        warnings.simplefilter("default")
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            text.flush()
            for number, original in zip((1, 2), kept, strict=True):
                os.dup2(original, number)
                os.close(original)
            _terminal = _printed = None
            said.seek(0)
            for line in said.read().decode(errors="replace").splitlines():
                log.debug("%s", line)
            for w in warned:
                log.debug("%s: %s", w.category.__name__, w.message)


def libraries() -> None:
    """Take down the log handlers and progress bars that torch, diffusers and transformers put up for themselves."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.disable_default_handler()
        library.enable_propagation()
    torch = logging.getLogger("torch")
    torch.handlers.clear()
    torch.propagate = True


def optuna() -> None:
    """Take down the log handler that Optuna puts up for itself, where it is installed."""
    if find_spec("optuna"):
        import optuna.logging

        optuna.logging.disable_default_handler()
