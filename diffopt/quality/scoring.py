"""Pictures and videos through scorers: read and prepared by threads, scored in batches, for a GPU while it is busy."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from diffopt.errors import MetricError
from diffopt.metrics import METRICS, Scorer

BATCH = 32
"""Pictures of one model that are scored at once; fixed, since it changes last bits."""
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


@dataclass
class Measured:
    """Row i of every array is prompt i; NaN where a picture of it could not be read."""

    values: dict[str, dict[str, np.ndarray]]
    """By metric and model [n], or [n, d] features of a metric that judges sets."""
    kept: np.ndarray
    """Bool [n]: every model's picture was read."""
    flaws: list[str]
    """A line for each picture that could not be read, is of one colour, or is another prompt's."""
    failed: dict[str, str]
    """By metric, why it was not measured to the end."""
    same: dict[str, np.ndarray]
    """By model, bool [n]: the picture is the reference's, pixel by pixel."""


@dataclass(frozen=True)
class _Read:
    """A picture, or a video's frames: their forms by the function that prepared them, or why there are none."""

    forms: dict[Any, list[Any]]
    digest: str = ""
    flat: bool = False
    error: str | None = None


def measure(
    prompts: Sequence[str],
    pictures: Judged,
    scorers: dict[str, Scorer],
    reference: str | None = None,
    tick: Callable[[], None] = lambda: None,
    device: str = "cpu",
) -> Measured:
    """Every metric of `scorers` on the pictures or videos of every model, one for each prompt.

    What judges pictures is given each frame of a video as one, and the video has the mean of its frames, or of their features.

    What judges pairs is given the `reference` model's pictures beside each other model's. A picture that cannot be read
    leaves its row out; a scorer that raises MetricError is given up. `tick` is called after each batch of each model;
    `device` is what `scorers` run on.
    """
    n, models = len(prompts), list(pictures)
    found: dict[str, dict[str, list[Any]]] = {name: {m: [] for m in models} for name in scorers}
    read: dict[str, list[_Read]] = {m: [] for m in models}
    failed: dict[str, str] = {}
    prepares = list(dict.fromkeys(s.prepare for s in scorers.values()))
    size = batch(pictures)
    for start, rows in zip(range(0, n, size), _batches(n, size, pictures, prepares, device), strict=True):
        kept = [i for i in range(len(next(iter(rows.values())))) if not any(rows[m][i].error for m in models)]
        asked = [prompts[start + i] for i in kept]
        videos = {m: {p: [rows[m][i].forms[p] for i in kept] for p in prepares} for m in models}
        # Made once: an encoder knows by the list that another metric has asked for the same pictures.
        frames = {m: {p: [f for v in videos[m][p] for f in v] for p in prepares} for m in models}
        lengths = {m: [len(v) for v in videos[m][prepares[0]]] if prepares else [] for m in models}
        for model in models:
            for name, scorer in scorers.items():
                pair, forms = METRICS[name].paired, videos if METRICS[name].of_video else frames
                if name in failed or not kept or (pair and model == reference):
                    continue
                theirs = forms[reference][scorer.prepare] if pair and reference else None
                ours = forms[model][scorer.prepare]
                try:
                    whole = METRICS[name].of_video
                    texts = [p for p, many in zip(asked, lengths[model], strict=True) for _ in range(many)]
                    if theirs is not None and reference:
                        shown, against = frames[model][scorer.prepare], frames[reference][scorer.prepare]
                        _check_sizes(name, model, shown, against, texts)
                    values = np.asarray(scorer.score(ours, asked if whole else texts, theirs))
                    if len(values) != len(ours):
                        raise MetricError(
                            f"{name}: gave {len(values)} values for {len(ours)} pictures (got a broken metric); mend it"
                        )
                    found[name][model].append((start + np.array(kept), values if whole else _means(values, lengths[model])))
                except MetricError as e:
                    failed[name] = str(e)
            read[model] += [_Read({}, r.digest, r.flat, r.error) for r in rows[model]]
            tick()
    arrays = {
        name: {m: _whole(parts, n) for m, parts in by_model.items() if parts}
        for name, by_model in found.items()
        if name not in failed
    }
    all_kept = np.array([not any(read[m][i].error for m in models) for i in range(n)])
    same = {
        m: np.array([o.digest == r.digest for o, r in zip(read[m], read[reference], strict=True)]) for m in models if reference
    }
    return Measured(arrays, all_kept, _flaws(prompts, pictures, read), failed, same)


def batch(pictures: Judged) -> int:
    """Prompts that are scored at once: BATCH pictures, or the videos that have so many frames, at least one."""
    longest = max((len(_files(p)) for paths in pictures.values() for p in paths), default=1)
    return max(1, BATCH // max(longest, 1))


def _files(picture: Path | Sequence[Path]) -> Sequence[Path]:
    return [picture] if isinstance(picture, Path) else picture


def _means(values: np.ndarray, lengths: list[int]) -> np.ndarray:
    """Of the frames of each video, [frames, ...] -> [videos, ...]."""
    if all(many == 1 for many in lengths):
        return values
    ends = np.cumsum(lengths)[:-1]
    return np.stack([part.mean(0, dtype=np.float64) for part in np.split(values, ends)])


def _batches(n: int, size: int, pictures: Judged, prepares: list[Any], device: str) -> Iterator[dict[str, list[_Read]]]:
    """The rows of a batch by model, in order; while a GPU has them those of the next ones are being read."""
    models = list(pictures)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:

        def submitted() -> Iterator[dict[str, list[Future[list[_Read]]]]]:
            for start in range(0, n, size):
                stop = min(start + size, n)
                chunks = [slice(first, min(first + CHUNK, stop)) for first in range(start, stop, CHUNK)]
                yield {m: [pool.submit(_read, [_files(p) for p in pictures[m][c]], prepares) for c in chunks] for m in models}

        waiting = submitted()
        ready = list(islice(waiting, AHEAD if device != "cpu" else 1))
        while ready:
            yield {m: [row for f in futures for row in f.result()] for m, futures in ready.pop(0).items()}
            ready += islice(waiting, 1)


def _read(rows: list[Sequence[Path]], prepares: list[Any]) -> list[_Read]:
    """Of each prompt a picture, or a video's frames."""
    decoded = [_decoded(paths) for paths in rows]
    whole = [picture for pictures, _ in decoded for picture in pictures]
    try:
        # As many as there are pictures, or the rows that follow would have each other's.
        prepared = {p: iter([form for form, _ in zip(p(whole), whole, strict=True)] if whole else []) for p in prepares}
    except Exception as e:  # what a processor raises for a picture that it cannot take is its own
        if len(rows) > 1:
            return [read for paths in rows for read in _read([paths], prepares)]
        return [_Read({}, error=_unreadable(_named(rows[0]), e))]
    found = []
    for pictures, error in decoded:
        digest, flat = hashlib.sha1(), True
        for picture in pictures:
            first = picture[0, 0]
            flat &= bool((picture[::16, ::16] == first).all() and (picture == first).all())  # all of it is 7 ms of 512 x 512
            digest.update(picture.data)
        forms = {p: list(islice(prepared[p], len(pictures))) for p in prepares}
        found.append(_Read({}, error=error) if error else _Read(forms, digest.hexdigest(), flat))
    return found


def _decoded(paths: Sequence[Path]) -> tuple[list[np.ndarray], str | None]:
    """Uint8 [height, width, 3] each; or none, and why."""
    from PIL import Image

    pictures = []
    for path in paths:
        try:
            with Image.open(path) as image:
                # An array of its own: torch warns of what is read-only.
                pictures.append(np.array(image if image.mode == "RGB" else image.convert("RGB")))
        except FileNotFoundError:
            return [], f"{path}: is not there"
        except Exception as e:  # Pillow raises OSError, SyntaxError, ValueError and more for what is no picture
            return [], _unreadable(path, e)
    return pictures, None


def _unreadable(path: Path, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return f"{path}: cannot be read as a picture ({reason})"


def _check_sizes(name: str, model: str, ours: list[Any], theirs: list[Any], prompts: list[str]) -> None:
    if len(ours) != len(theirs):
        raise MetricError(
            f"{name}: the videos have unequal numbers of frames (got {len(ours)} beside {len(theirs)}, {model!r}); "
            "draw them in one length"
        )
    for one, other, prompt in zip(ours, theirs, prompts, strict=True):
        if one.shape != other.shape:
            sizes = " beside ".join(f"{p.shape[1]} x {p.shape[0]}" for p in (one, other))
            raise MetricError(
                f"{name}: two pictures of {prompt!r} have unequal sizes (got {sizes}, {model!r}); draw them in one size"
            )


def _whole(parts: list[tuple[np.ndarray, np.ndarray]], n: int) -> np.ndarray:
    """The values of all rows, NaN where none was measured."""
    whole = np.full((n, *parts[0][1].shape[1:]), np.nan)
    for rows, values in parts:
        whole[rows] = values
    return whole


def _flaws(prompts: Sequence[str], pictures: Judged, read: dict[str, list[_Read]]) -> list[str]:
    """What a model that succeeded in name only leaves behind."""
    found = []
    for model, rows in read.items():
        found += [
            f"{r.error} (got it for {model!r}, {p!r}); its prompt is left out"
            for p, r in zip(prompts, rows, strict=True)
            if r.error
        ]
        found += [
            f"{_named(pictures[model][i])}: has one colour (got it for {model!r}, {prompts[i]!r}); draw it again"
            for i, r in enumerate(rows)
            if r.flat
        ]
        alike: dict[str, dict[str, int]] = defaultdict(dict)
        for i, r in enumerate(rows):
            if not r.error and not r.flat:
                alike[r.digest].setdefault(prompts[i], i)
        for first, second, *_ in (list(a.values()) for a in alike.values() if len(a) > 1):
            found.append(
                f"{_named(pictures[model][second])}: is the picture of another prompt too "
                f"(got it for {prompts[first]!r} and {prompts[second]!r} of {model!r}); draw them again"
            )
    return found


def _named(picture: Path | Sequence[Path]) -> Path:
    """The file, or the directory of a video's frames."""
    return picture if isinstance(picture, Path) else picture[0].parent if len(picture) > 1 else picture[0]
