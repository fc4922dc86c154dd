"""The gallery of a page: what was made of each prompt, side by side, ranked by every metric. Imports no library."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from diffopt.files.evaluation import EvaluatedMetric, EvaluationFile
from diffopt.files.metrics import MetricResult
from diffopt.quality.direction import sign
from diffopt.report.html import picture, picture_size
from diffopt.report.pair import VideoPaths
from diffopt.text import digits

if TYPE_CHECKING:
    from diffopt.report.run_directory import Run

SHOWN = 2000
"""Pairs on one page; beyond it only the worst, so that the page stays one that a browser opens."""
SCRIPT = "gallery.js"
"""Of templates/: what orders, filters and compares. Without it the page shows everything side by side."""


@dataclass(frozen=True)
class Picture:
    kind: str
    """reference, candidate, a further candidate's name, difference, or a model's name."""
    source: str
    """What the page shows: a link relative to it, or the picture itself."""
    width: int
    """Pixels; of the picture itself where a smaller copy is shown."""
    height: int
    link: str = ""
    """The file, relative to the page; empty where the page is to be passed on without it."""


@dataclass(frozen=True)
class Value:
    title: str
    unit: str
    decimals: int
    value: float
    reference: float | None = None


@dataclass(frozen=True)
class Video:
    """Of one kind: its frames that were judged, and a file that plays. Links relative to the page."""

    kind: str
    frames: list[str]
    plays: str


@dataclass
class Pair:
    """All pictures of one prompt."""

    number: int
    prompt: str
    seed: int | None
    pictures: list[Picture]
    values: list[Value]
    same: bool = False
    ranks: list[int] = field(default_factory=list)
    """Its place in each of the gallery's orders."""
    videos: list[Video] = field(default_factory=list)


@dataclass(frozen=True)
class Gallery:
    pairs: list[Pair]
    """In the first order."""
    orders: list[str]
    """What the pairs can be ordered by, the worst first; at last, in the order of the prompts."""
    kinds: list[str]
    total: int
    """How many there are, of which `pairs` are the worst."""
    inline: bool

    @property
    def widest(self) -> int:
        return max((p.width for pair in self.pairs for p in pair.pictures), default=0)


def of_run(run: "Run", limit: int, inline: bool = False) -> Gallery:
    """The run's pairs; with `inline` small copies of the pictures are in the page, and nothing is linked."""
    rows = run.pairs[:limit]
    metrics = {name: m for name, m in run.metrics.items() if m.values is not None}
    pairs = []
    for row in rows:
        shown = [_picture(kind, path, run.directory, inline) for kind, path in row.files.items()]
        values = [
            Value(m.title, m.unit, digits(m.candidate), row.values[name], row.theirs.get(name)) for name, m in metrics.items()
        ]
        values += [
            Value(f"{metrics[name].title}, {other}", metrics[name].unit, digits(metrics[name].candidate), value)
            for other, found in row.compared.items()
            for name, value in found.items()
        ]
        videos = [] if inline else [_video(k, v, run.directory) for k, v in row.videos.items()]
        pairs.append(Pair(row.number, row.prompt, row.seed, shown, values, row.same, videos=videos))
    worths = [[turn(m) * r.worth(name) for r in rows] for name, m in metrics.items()]
    return _gallery(pairs, [_order(m) for m in metrics.values()], worths, len(run.pairs), inline)


def of_evaluation(content: EvaluationFile, pictures: Mapping[str, Sequence[Path]], directory: Path, limit: int) -> Gallery:
    """Of `diffopt eval`, for a page in `directory`; a prompt is as bad as the worst of its models."""
    reference, left_out = content.reference, set(content.left_out)
    models = sorted(content.models, key=lambda m: m != reference)
    metrics = [m for m in content.metrics.values() if any(e.values is not None for e in m.models.values())]
    pairs: list[Pair] = []
    worths: list[list[float]] = [[] for _ in metrics]
    for i, prompt in enumerate(content.prompts):
        if i in left_out:
            continue
        shown = [_picture(m, pictures[m][i], directory, False) for m in models]
        values = []
        for worth, metric in zip(worths, metrics, strict=True):
            by_model = {k: v for k, e in metric.models.items() if e.values is not None and (v := e.values[i]) is not None}
            base = by_model.get(reference, 0.0) if reference else 0.0
            compared = [v for k, v in by_model.items() if k != reference] or [*by_model.values()]
            worth.append(min(turn(metric) * (v - base) for v in compared))
            values += [
                Value(f"{metric.title}, {k}" if len(models) > 1 else metric.title, metric.unit, digits(e.stat), v)
                for k, v in by_model.items()
                for e in [metric.models[k]]
            ]
        pairs.append(Pair(i, prompt, None, shown, values))
    whole = _gallery(pairs, [_order(m) for m in metrics], worths, len(pairs), False)
    return Gallery(whole.pairs[:limit], whole.orders, whole.kinds, whole.total, False)


def turn(metric: MetricResult | EvaluatedMetric) -> int:
    """What makes less be worse."""
    return sign(metric.better)


def ranks(worths: Sequence[float | None]) -> list[int]:
    """The place of each, the least first; where nothing was measured, last."""
    ordered = sorted(range(len(worths)), key=lambda i: (worths[i] is None, worths[i] or 0.0))
    places = [0] * len(worths)
    for place, i in enumerate(ordered):
        places[i] = place
    return places


def _order(metric: MetricResult | EvaluatedMetric) -> str:
    if isinstance(metric, MetricResult):
        compared = metric.reference is not None
    else:
        compared = any(e.difference for e in metric.models.values())
    return f"difference in {metric.title}" if compared else metric.title


def _gallery(
    pairs: list[Pair], orders: list[str], worths: Iterable[Sequence[float | None]], total: int, inline: bool
) -> Gallery:
    for places in [*map(ranks, worths), ranks([p.number for p in pairs])]:
        for pair, place in zip(pairs, places, strict=True):
            pair.ranks.append(place)
    kinds = list(dict.fromkeys(p.kind for pair in pairs for p in pair.pictures))
    pairs = sorted(pairs, key=lambda p: p.ranks[0])
    return Gallery(pairs, [*(f"worst {o} first" for o in orders), "in the prompts' order"], kinds, total, inline)


def _picture(kind: str, path: Path, directory: Path, inline: bool) -> Picture:
    if inline:
        copy = picture(path)
        return Picture(kind, copy["uri"], copy["width"], copy["height"])
    link = _link(path, directory)
    return Picture(kind, link, *picture_size(path), link)


def _video(kind: str, files: VideoPaths, directory: Path) -> Video:
    return Video(kind, [_link(p, directory) for p in files.frames], _link(files.plays, directory))


def _link(path: Path, directory: Path) -> str:
    """Without resolving: a run's directory has its artifacts under the names of their steps."""
    return quote(os.path.relpath(path, directory).replace(os.sep, "/"))
