"""Files that are there whole or not at all, also after the power went."""

import errno
import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import Any

from diffopt.files.json_file import loaded

LARGEST = 64 << 20
"""Bytes of a JSON file that is read whole; the largest of models, indices of weights, have some MB."""


def publish(path: Path, text: str) -> Path:
    """Write a file whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        create(draft, text)
        os.replace(draft, path)
        flush(path.parent)
    finally:
        draft.unlink(missing_ok=True)
    return path


def flush(path: Path) -> None:
    """Have the disk keep what was written to a file, or the names in a directory: a rename alone may outlive the bytes."""
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def flush_all(folder: Path) -> None:
    """Likewise every file and directory below `folder`, and itself."""
    for here, _, names in os.walk(folder, topdown=False):
        for name in names:
            if not (file := Path(here) / name).is_symlink():
                flush(file)
        flush(Path(here))


def sha256(path: Path) -> str:
    """Of a file's bytes. Raises OSError for what is no plain file, as a pipe, which would be waited for."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(number, "rb") as f:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "is no plain file", str(path))
        return hashlib.file_digest(f, "sha256").hexdigest()


def remove(path: Path) -> None:
    """A file, a link (never what it leads to), or a directory with all that is in it, read-only ones too."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    path.chmod(path.stat().st_mode | stat.S_IRWXU)
    for here, below, _ in os.walk(path):  # links are not entered, and stay as they are
        for name in below:
            if not (inner := Path(here) / name).is_symlink():
                inner.chmod(inner.stat().st_mode | stat.S_IRWXU)
    shutil.rmtree(path)


def content(path: Path, most: int | None = None) -> bytes:
    """All of a file. Raises OSError for what is no plain file, as a pipe, which would be waited for, or /dev/zero, and for
    one of more than `most` bytes."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(number, "rb") as f:
        about = os.fstat(number)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        if most is not None and about.st_size > most:
            raise OSError(errno.EFBIG, f"it has {about.st_size} bytes, and at most {most} are read", str(path))
        return f.read()


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file that others wrote. Raises OSError, and ValueError for what is no object."""
    found = loaded(content(path, LARGEST))
    if not isinstance(found, dict):
        raise ValueError(f"it is no JSON object, but {type(found).__name__}")
    return found


def create(path: Path, text: str) -> None:
    """Write a new file in the place of what is there, which may be a link: never to what it leads to."""
    path.unlink(missing_ok=True)
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(number, "w", encoding="utf-8", errors="replace") as f:
        f.write(text)
        f.flush()
        os.fsync(number)
