"""A metric over two swept numbers: as cells of a grid, or as coloured points where a search left no grid."""

from dataclasses import dataclass
from typing import Any

from diffopt.files.metrics import MetricResult
from diffopt.report.plots.canvas import INK, LINE, SLIM, SOFT, fitted, sheet
from diffopt.sweep.grid import Panel
from diffopt.sweep.job_table import Row
from diffopt.sweep.numeric import number

CELL, LOW, BESIDE = (0.85, 0.5), 2.0, 2.1
"""Inches of a cell; of the lowest plot, in which the colour bar's title still has its place; of what is beside the cells."""
FIGURE, LEAST = 0.65, 7.0
"""Ems that a figure takes in width; points that can be read."""


@dataclass(frozen=True)
class Written:
    """What the cells of a map say."""

    name: str
    """The metric's, in a row's metrics."""
    best: Row | None
    decimals: int


def heat(panel: Panel, metric: MetricResult, name: str, ends: tuple[float, float], best: Row | None, decimals: int) -> str:
    """`ends` are the lowest and highest mean of the whole sweep: all panels have one scale. The brighter the better."""
    assert panel.x is not None
    width = CELL[0] * len(panel.x.labels) + BESIDE
    return fitted(lambda w: _map(panel, metric, ends, Written(name, best, decimals), w), width)


def _map(panel: Panel, metric: MetricResult, ends: tuple[float, float], written: Written, width: float) -> str:
    """`width` inches wide. Numbers for which a cell is too narrow stand upright."""
    name, best, decimals = written.name, written.best, written.decimals
    x, y = panel.x, panel.y
    assert x is not None
    assert y is not None
    across = 72 * (width - BESIDE) / len(x.labels)
    values = [f"{r.metrics[name].candidate.mean:.{decimals}f}" for r in panel.rows if name in r.metrics]
    most = FIGURE * max(map(len, [*values, "failed"]))
    points, upright = min(10.0, across / most), across / most < LEAST
    if upright:
        points = min(8.0, 72 * CELL[1] / most, across)
    height = max(CELL[1] * len(y.labels) + 0.85 + 0.25 * bool(panel.title), LOW)
    with sheet(_said(panel, metric, "Heat map"), width, height) as made:
        from matplotlib.patches import Rectangle

        axes, scale = made.axes(), _scale(metric, ends)
        taken: dict[tuple[int, int], Row] = {}
        for row in sorted(panel.rows, key=lambda r: r.run is None):  # one that ran stands for those that are the same
            if place := panel.place(row):
                taken.setdefault(place, row)
        for (i, j), row in taken.items():
            corner, there = (j - 0.5, i - 0.5), name in row.metrics
            value = row.metrics[name].candidate.mean if there else 0.0
            fill = scale.to_rgba(value) if there else LINE
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=fill, edgecolor="none"))
            text = f"{value:.{decimals}f}" if there else "failed" if row.error else "\N{EN DASH}"
            colour = _legible(scale.to_rgba(value)) if there else INK
            bold = {"fontweight": "bold"} if row is best else {}
            axes.text(
                j,
                i,
                text,
                ha="center",
                va="center",
                color=colour,
                fontsize=points if there else min(points, 8),
                rotation=90 * upright,
                **bold,
            )
            if row is best:
                axes.add_patch(Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, fill=False, edgecolor=colour, linewidth=2))
        axes.set(xlim=(-0.5, len(x.labels) - 0.5), ylim=(-0.5, len(y.labels) - 0.5), title=panel.title)
        turned = max(map(len, x.labels)) * 10 * FIGURE > across
        axes.set_xticks(range(len(x.labels)), x.labels, rotation=90 * turned)
        axes.set_yticks(range(len(y.labels)), y.labels)
        axes.set(xlabel=x.key if x.values else "", ylabel=y.key if y.values else "")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        _bar(made.figure, axes, scale, metric)
    return made.svg


def points(panel: Panel, metric: MetricResult, name: str, ends: tuple[float, float], best: Row | None) -> str:
    """The same for jobs that fill no grid: a point a job, where its two numbers are."""
    x, y = panel.x, panel.y
    assert x is not None
    assert y is not None
    with sheet(_said(panel, metric, "Points"), SLIM, 3.4) as made:
        axes, scale = made.axes(), _scale(metric, ends)
        axes.grid(True)
        for row in panel.rows:
            where = number(row.value(x.key)), number(row.value(y.key))
            if None in where:
                continue
            if name not in row.metrics:
                axes.plot(*where, "x", color=SOFT, markersize=7)
                continue
            colour = scale.to_rgba(row.metrics[name].candidate.mean)
            edge = {"markeredgecolor": INK, "markeredgewidth": 2 if row is best else 0.5}
            axes.plot(*where, "o", color=colour, markersize=11 if row is best else 8, **edge)
        axes.set(xlabel=x.key, ylabel=y.key, title=panel.title)
        _bar(made.figure, axes, scale, metric)
    return made.svg


def _said(panel: Panel, metric: MetricResult, what: str) -> str:
    over = f" over {panel.x.key} and {panel.y.key}" if panel.x and panel.y else ""
    return f"{what} of {metric.title}{over}" + (f", {panel.title}" if panel.title else "")


def _scale(metric: MetricResult, ends: tuple[float, float]) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high = ends
    wide = high - low or abs(high) * 1e-3 or 1.0
    return ScalarMappable(Normalize(low, low + wide), "viridis" if metric.better == "higher" else "viridis_r")


def _legible(colour: tuple[float, float, float, float]) -> str:
    """Black or white, by the luminance of what is under it."""
    red, green, blue, _ = colour
    return "#000000" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "#ffffff"


def _bar(figure: Any, axes: Any, scale: Any, metric: MetricResult) -> None:
    """The scale, in steps: a smooth one would be a picture of pixels."""
    import numpy as np

    low, high = scale.get_clim()
    bar = figure.colorbar(scale, ax=axes, boundaries=np.linspace(low, high, 33), fraction=0.06, pad=0.03, aspect=14)
    from matplotlib.ticker import MaxNLocator

    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    bar.minorticks_off()
    bar.outline.set_visible(False)
    bar.solids.set(edgecolor="face", linewidth=0.4)
    bar.set_label(metric.title + (f", {metric.unit}" if metric.unit else ""))
