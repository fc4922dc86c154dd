"""Prompts that are scored at once, and what a metric is given of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffopt.errors import MetricError
from diffopt.metrics import METRICS, Scorer
from diffopt.quality.reading import Read


@dataclass(frozen=True)
class Batch:
    """Those of some prompts in a row of which every model's picture was read; a picture is a video of one frame."""

    rows: np.ndarray
    """Int [k]: which of all prompts they are."""
    prompts: list[str]
    videos: dict[str, dict[Any, list[list[Any]]]]
    """By model and the function that prepared them, of each prompt its frames."""
    frames: dict[str, dict[Any, list[Any]]]
    """The same of all prompts in one list. Made once: an encoder knows by the list that another metric has asked for the same
    pictures."""

    @classmethod
    def of(cls, start: int, prompts: Sequence[str], read: Mapping[str, list[Read]], prepares: Sequence[Any]) -> "Batch":
        """Of `prompts`, the first of which is number `start`, and what was read for them by model."""
        kept = [i for i in range(len(prompts)) if not any(rows[i].error for rows in read.values())]
        videos = {m: {p: [rows[i].forms[p] for i in kept] for p in prepares} for m, rows in read.items()}
        frames = {m: {p: [f for v in by[p] for f in v] for p in prepares} for m, by in videos.items()}
        return cls(start + np.array(kept, int), [prompts[i] for i in kept], videos, frames)

    def score(self, name: str, scorer: Scorer, model: str, reference: str | None) -> np.ndarray:
        """The values of a metric for the model's pictures, [k], or their features, [k, d].

        Raises MetricError for what the scorer cannot score, for pairs of unequal sizes, and for too many or too few values.
        """
        metric, by = METRICS[name], scorer.prepare
        forms = self.videos if metric.of_video else self.frames
        each, theirs = [len(v) for v in self.videos[model][by]], None
        texts = [p for p, many in zip(self.prompts, each, strict=True) for _ in range(many)]
        if metric.paired and reference:
            _check_sizes(name, model, self.frames[model][by], self.frames[reference][by], texts)
            theirs = forms[reference][by]
        ours = forms[model][by]
        values = np.asarray(scorer.score(ours, self.prompts if metric.of_video else texts, theirs))
        if len(values) != len(ours):
            raise MetricError(f"{name}: gave {len(values)} values for {len(ours)} pictures (got a broken metric); mend it")
        return values if metric.of_video else _means(values, each)


def _means(values: np.ndarray, lengths: list[int]) -> np.ndarray:
    """Of the frames of each video, [frames, ...] -> [videos, ...]."""
    if all(many == 1 for many in lengths):
        return values
    ends = np.cumsum(lengths)[:-1]
    return np.stack([part.mean(0, dtype=np.float64) for part in np.split(values, ends)])


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
