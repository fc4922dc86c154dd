"""Plots that were drawn before, kept in the store: to draw them took half of the time of a run that makes nothing."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import diffopt
from diffopt.files.json_file import loaded, typed
from diffopt.machine.environment import package
from diffopt.store.files import content, publish
from diffopt.store.store import PLOTS

LIBRARIES = ("matplotlib", "numpy", "kiwisolver", "pillow")
"""What draws, computes with, lays out, and compresses."""


def drawn(artifact: Path, data: Any, draw: Callable[[], dict[str, str]]) -> dict[str, str]:
    """What `draw` makes of `data`, an image by name; or made of it before, by the same code and libraries.

    `artifact` is a run's link to the artifact that `data` was read from: its images are kept in the same store, in one file,
    which may go at any time. Where it is no link there is no store, and where nothing can be written nothing is kept.
    """
    if not artifact.is_symlink():
        return draw()
    there = artifact.resolve()
    path = there.parent.parent / PLOTS / f"{there.name}.json"
    key = hashlib.sha256(json.dumps([data, _makers()]).encode()).hexdigest()
    with suppress(OSError, ValueError):  # it is not there, or only half of it
        kept = loaded(content(path))
        if isinstance(kept, dict) and kept.get("key") == key:
            return typed(dict[str, str], kept.get("plots"))
    found = draw()
    with suppress(OSError):  # another's store, or a full one: the page needs it not
        path.parent.mkdir(exist_ok=True)
        publish(path, json.dumps({"key": key, "plots": found}))
    return found


@cache
def _makers() -> list[str | None]:
    """Our code, by its hash, and the versions of the libraries."""
    root = Path(diffopt.__file__).parent
    code = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        code.update(path.read_bytes())
    return [code.hexdigest(), *map(package, LIBRARIES)]
