"""An exception that nothing foresaw, as one line: what it is, and the file with its traceback."""

import errno
import logging
import os
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

MARK = "ended in an error that it does not know"
UNWRITABLE = {
    getattr(errno, e) for e in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "ENOTDIR", "EEXIST", "EISDIR", "EFBIG")
}

log = logging.getLogger("diffopt")


def of_disk(error: OSError, arguments: Sequence[str]) -> str | None:
    """For an output that cannot be written, a file that may not be read, or what is too long to name one; None for what is
    none of these."""
    reason, path = (error.strerror or str(error)).lower(), error.filename
    if error.errno == errno.ENAMETOOLONG:
        text = str(path)
        given = next((x for x in arguments if text in x or Path(text).name in x), "")
        key = given.partition("=")[0].lstrip("+") if "=" in given else "diffopt"
        return f"{key}: no file can have so long a name (got {len(text)} characters, {text[:40]!r}...); check the path"
    if isinstance(path, str | Path) and os.path.isfile(path) and not os.access(path, os.R_OK):
        return f"{Path(path).name}: cannot be read ({reason}) (got {str(path)!r}); give yourself leave to, or name another file"
    makes = any(frame.name in ("mkdir", "makedirs") for frame in traceback.extract_tb(error.__traceback__))
    if makes or error.errno in UNWRITABLE:
        return f"outputs: cannot be written ({reason}) (got {str(path or 'outputs')!r}); run where you may write"
    return None


def line(error: BaseException, arguments: Sequence[str]) -> str:
    """For the user. The traceback goes to the run's log, or to a file of its own where no run has begun."""
    where = _logged(error) or _written(error)
    given = " ".join(["diffopt", *arguments])
    text = (str(error).strip().splitlines() or [""])[0][:300]
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    look = f"its traceback is in {where}" if where else "HYDRA_FULL_ERROR=1 shows its traceback"
    return f"diffopt: {MARK}: {what} (got {given}); {look}"


def _logged(error: BaseException) -> str | None:
    """The path of the run's log, which has the traceback then."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            log.debug("an error that nothing foresaw", exc_info=error)
            handler.flush()
            if os.path.isfile(handler.baseFilename):
                return os.path.relpath(handler.baseFilename)
    return None


def _written(error: BaseException) -> str | None:
    try:
        number, path = tempfile.mkstemp(prefix="diffopt-", suffix=".log")
        with os.fdopen(number, "w", encoding="utf-8", errors="replace") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:  # no disk has room
        return None
    return str(Path(path))
