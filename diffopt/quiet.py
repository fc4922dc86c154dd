"""Libraries say what they have to say to the run's log file, not to the user's terminal."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

log = logging.getLogger("diffopt")


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """What is printed or warned within goes to the log at debug level. Progress bars of ours write past it."""
    said = io.StringIO()
    with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        warnings.simplefilter("default")
        try:
            yield
        finally:
            for line in said.getvalue().splitlines():
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
