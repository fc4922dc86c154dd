"""Pictures and videos read and prepared by threads: a batch at a time, for a GPU while it is busy."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from diffopt.errors import pass_on

Judged = Mapping[str, Sequence[Path | Sequence[Path]]]
"""By model, of each prompt a picture's file, or the files of a video's frames."""
CHUNK = 4
"""Pictures of one model that a thread reads and prepares at once. An image processor has Python's lock as long for one as for
eight, 0.9 ms, which is what 16 threads that read for a GPU would wait for; and the first batch waits for all threads' chunks.
1,000 pictures through ViT-L/14 on one H200 took 1.02 to 1.10 of the bare forward in fours, 1.08 to 1.16 in eights, 1.18 to 1.23
in twos; 1.6 to 2.1 where a reading thread has one torch thread (tests/bench_eval.py's arithmetic, in turn in one process).
"""
AHEAD = 4
"""Batches that are read while a GPU is busy: two chunks for each of 16 threads. On a CPU reading would take the cores that the
model has, whose threads then wait for each other: there all cores read a batch, then all score it (1.11 of the bare forward for
1.12, 1.07 of its processor time for 1.10; tests/bench_eval.py 288 512 ViT-B-32 on two cores, before there were chunks).
"""


@dataclass(frozen=True)
class Read:
    """A picture, or a video's frames; or why there are none."""

    forms: dict[Any, list[Any]]
    """By the function that prepared them what it made of each frame; a picture is one."""
    digest: str = ""
    flat: bool = False
    error: str | None = None


def batches(n: int, size: int, pictures: Judged, prepares: list[Any], device: str) -> Iterator[dict[str, list[Read]]]:
    """The rows of a batch by model, in order; while a GPU has them those of the next ones are being read."""
    models = list(pictures)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:

        def submitted() -> Iterator[dict[str, list[Future[list[Read]]]]]:
            for start in range(0, n, size):
                stop = min(start + size, n)
                chunks = [slice(first, min(first + CHUNK, stop)) for first in range(start, stop, CHUNK)]
                yield {m: [pool.submit(_read, [files(p) for p in pictures[m][c]], prepares) for c in chunks] for m in models}

        waiting = submitted()
        ready = list(islice(waiting, AHEAD if device != "cpu" else 1))
        while ready:
            yield {m: [row for f in futures for row in f.result()] for m, futures in ready.pop(0).items()}
            ready += islice(waiting, 1)


def files(picture: Path | Sequence[Path]) -> Sequence[Path]:
    """Of a video those of its frames."""
    return [picture] if isinstance(picture, Path) else picture


def named(picture: Path | Sequence[Path]) -> Path:
    """The file, or the directory of a video's frames."""
    return picture if isinstance(picture, Path) else picture[0].parent if len(picture) > 1 else picture[0]


def _read(rows: list[Sequence[Path]], prepares: list[Any]) -> list[Read]:
    """Of each prompt a picture, or a video's frames."""
    decoded = [_decoded(paths) for paths in rows]
    whole = [picture for pictures, _ in decoded for picture in pictures]
    try:
        # As many as there are pictures, or the rows that follow would have each other's.
        prepared = {p: iter([form for form, _ in zip(p(whole), whole, strict=True)] if whole else []) for p in prepares}
    except Exception as e:  # what a processor raises for a picture that it cannot take is its own
        pass_on(e)
        if len(rows) > 1:
            return [read for paths in rows for read in _read([paths], prepares)]
        return [Read({}, error=_unreadable(named(rows[0]), e))]
    found = []
    for pictures, error in decoded:
        digest, flat = hashlib.sha1(), True
        for picture in pictures:
            first = picture[0, 0]
            flat &= bool((picture[::16, ::16] == first).all() and (picture == first).all())  # all of it is 7 ms of 512 x 512
            digest.update(picture.data)
        forms = {p: list(islice(prepared[p], len(pictures))) for p in prepares}
        found.append(Read({}, error=error) if error else Read(forms, digest.hexdigest(), flat))
    return found


def _decoded(paths: Sequence[Path]) -> tuple[list[np.ndarray], str | None]:
    """Uint8 [height, width, 3] each; or none, and why."""
    from diffopt.data import picture

    pictures = []
    for path in paths:
        try:
            pictures.append(picture.pixels(path))
        except FileNotFoundError:
            return [], f"{path}: is not there"
        except Exception as e:  # Pillow raises OSError, SyntaxError, ValueError and more for what is no picture
            pass_on(e)
            return [], _unreadable(path, e)
    return pictures, None


def _unreadable(path: Path, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return f"{path}: cannot be read as a picture ({reason})"
