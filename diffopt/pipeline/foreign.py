"""The files of a source, which are others': whatever a library raises over them is said as a line that names them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffopt.errors import DiffoptError, SourceError, pass_on
from diffopt.models.family import Json
from diffopt.pipeline.fields import mistyped
from diffopt.store.files import json_object

LONGEST = 200
"""Characters of what the library said."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises SourceError for what is raised within, and MemoryError where memory lacked. Over a config of another shape than
    they wrote, libraries raise anything: TypeError, AttributeError, AssertionError, RuntimeError."""
    try:
        yield
    except (DiffoptError, ImportError):  # a package that is not installed is no fault of the file
        raise
    except Exception as e:
        pass_on(e)
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:LONGEST]
        raise SourceError(f"model.source: cannot be read: {reason} (got {str(path)!r}); download it again") from e


def made(cls: Any, config: Json) -> Any:
    """An object of a class of diffusers by its config. Raises ValueError for a field of another type than the class takes."""
    check(cls, config)
    return cls.from_config(config)


def check(cls: Any, config: Json) -> None:
    """Raises ValueError for the same."""
    if odd := mistyped(cls, config):
        raise ValueError(odd)


def config_of(path: Path) -> Json:
    """The object in a JSON file. Raises SourceError."""
    with reading(path):
        return json_object(path)
