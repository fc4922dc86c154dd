"""The plots of a sweep's page: the grid in every metric, and the Pareto fronts."""

from dataclasses import dataclass
from typing import Any

from diffopt.files.metrics import MetricResult
from diffopt.sweep import ranking
from diffopt.sweep.findings import Findings
from diffopt.sweep.grid import Panel, panels
from diffopt.text import digits


@dataclass(frozen=True)
class Plots:
    """SVG to inline."""

    grids: dict[str, list[str]]
    """By metric one a panel."""
    fronts: dict[str, dict[str, str]]
    """By cost and metric."""


def plotted(found: Findings) -> Plots:
    """Nothing for a sweep in which nothing was measured: matplotlib is not even imported."""
    metrics = {k: m for r in reversed(found.rows) for k, m in r.metrics.items()}
    shown = panels(found.rows) if found.distinct > 1 else []
    grids = {name: [_panel(found, p, name, metric) for p in shown] for name, metric in metrics.items()} if shown else {}
    fronts: dict[str, dict[str, str]] = {}
    for cost in found.costs:
        if cost.name in found.fronts:
            fronts[cost.name] = {name: _front(found, cost, name, metric) for name, metric in metrics.items()}
    return Plots(grids, fronts)


def _panel(found: Findings, panel: Panel, name: str, metric: MetricResult) -> str:
    from diffopt.sweep.plots.heat import heat, points
    from diffopt.sweep.plots.lines import dots, lines

    means = [r.metrics[name].candidate.mean for r in found.rows if name in r.metrics]
    decimals = min(4, max(digits(r.metrics[name].candidate) for r in found.rows if name in r.metrics))
    top = max((r for r in found.rows if name in r.metrics), key=lambda r: ranking.worth(r, name))
    if panel.kind == "map":
        return heat(panel, metric, name, (min(means), max(means)), top, decimals)
    if panel.kind == "points":
        return points(panel, metric, name, (min(means), max(means)), top)
    return lines(panel, metric, name) if panel.kind == "line" else dots(panel, metric, name)


def _front(found: Findings, cost: Any, name: str, metric: MetricResult) -> str:
    from diffopt.sweep.plots.pareto import trade

    return trade(found.rows, ranking.front(found.rows, name, cost), metric, name, cost, found.swept)
