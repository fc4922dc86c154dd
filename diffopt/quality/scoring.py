"""Pictures and videos through scorers, in batches."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffopt.errors import MetricError
from diffopt.metrics import METRICS, Scorer
from diffopt.quality.batch import Batch
from diffopt.quality.reading import Judged, Read, batches, files, named

BATCH = 32
"""Pictures of one model that are scored at once; fixed, since it changes last bits."""


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
    read: dict[str, list[Read]] = {m: [] for m in models}
    failed: dict[str, str] = {}
    prepares = list(dict.fromkeys(s.prepare for s in scorers.values()))
    size = batch(pictures)
    for start, rows in zip(range(0, n, size), batches(n, size, pictures, prepares, device), strict=True):
        these = Batch.of(start, prompts[start : start + size], rows, prepares)
        for model in models:
            for name, scorer in scorers.items():
                if name in failed or not these.prompts or (METRICS[name].paired and model == reference):
                    continue
                try:
                    found[name][model].append((these.rows, these.score(name, scorer, model, reference)))
                except MetricError as e:
                    failed[name] = str(e)
            read[model] += [replace(r, forms={}) for r in rows[model]]
            tick()
    whole = {
        name: {m: _whole(parts, n) for m, parts in by.items() if parts} for name, by in found.items() if name not in failed
    }
    kept = np.array([not any(read[m][i].error for m in models) for i in range(n)])
    same = _same(read, reference) if reference else {}
    return Measured(whole, kept, _flaws(prompts, pictures, read), failed, same)


def batch(pictures: Judged) -> int:
    """Prompts that are scored at once: BATCH pictures, or the videos that have so many frames, at least one."""
    longest = max((len(files(p)) for paths in pictures.values() for p in paths), default=1)
    return max(1, BATCH // max(longest, 1))


def _whole(parts: list[tuple[np.ndarray, np.ndarray]], n: int) -> np.ndarray:
    """The values of all rows, NaN where none was measured."""
    whole = np.full((n, *parts[0][1].shape[1:]), np.nan)
    for rows, values in parts:
        whole[rows] = values
    return whole


def _same(read: dict[str, list[Read]], reference: str) -> dict[str, np.ndarray]:
    """By model, bool [n]: which pictures are the reference's."""
    return {m: np.array([o.digest == r.digest for o, r in zip(rows, read[reference], strict=True)]) for m, rows in read.items()}


def _flaws(prompts: Sequence[str], pictures: Judged, read: dict[str, list[Read]]) -> list[str]:
    """What a model that succeeded in name only leaves behind."""
    found = []
    for model, rows in read.items():
        found += [
            f"{r.error} (got it for {model!r}, {p!r}); its prompt is left out"
            for p, r in zip(prompts, rows, strict=True)
            if r.error
        ]
        found += [
            f"{named(pictures[model][i])}: has one colour (got it for {model!r}, {prompts[i]!r}); draw it again"
            for i, r in enumerate(rows)
            if r.flat
        ]
        alike: dict[str, dict[str, int]] = defaultdict(dict)
        for i, r in enumerate(rows):
            if not r.error and not r.flat:
                alike[r.digest].setdefault(prompts[i], i)
        for first, second, *_ in (list(a.values()) for a in alike.values() if len(a) > 1):
            found.append(
                f"{named(pictures[model][second])}: is the picture of another prompt too "
                f"(got it for {prompts[first]!r} and {prompts[second]!r} of {model!r}); draw them again"
            )
    return found
