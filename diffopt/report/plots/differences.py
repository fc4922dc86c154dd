"""A metric's value of every pair, sorted: candidate - reference, or the distance of the two."""

from diffopt.files.metrics import MetricResult
from diffopt.report.plots.canvas import COLOURS, INK, SLIM, sheet

MARKED = 100
"""Pairs up to which each is a dot; more are a line."""


def differences(metric: MetricResult) -> str:
    """From the worst pair to the best, beside no change (of a score of single pictures) and the mean with its interval.

    `metric` has `values`.
    """
    assert metric.values is not None
    paired, stat = metric.difference is not None, metric.difference or metric.candidate
    theirs = metric.reference_values if metric.difference and metric.reference_values else [0.0] * len(metric.values)
    values = sorted((a - b for a, b in zip(metric.values, theirs, strict=True)), reverse=metric.better == "lower")
    title = f"{metric.title}, candidate \N{MINUS SIGN} reference" if paired else f"{metric.title} of each pair"
    with sheet(title, SLIM, 2.8) as made:
        axes, places = made.axes(), range(1, len(values) + 1)
        axes.grid(True, axis="y")
        axes.plot(places, values, "-", color=COLOURS[0], linewidth=1.2, zorder=3)
        if len(values) <= MARKED:
            axes.plot(places, values, "o", color=COLOURS[0], markersize=4, zorder=4)
        if paired:
            axes.fill_between(places, values, 0, color=COLOURS[0], alpha=0.18, linewidth=0)
            axes.axhline(0, color=INK, linewidth=1.2, label="no change")
        axes.axhline(stat.mean, color=COLOURS[1], linewidth=1.4, label="mean" if stat.ends is None else "mean, 95% interval")
        if stat.ends:
            axes.axhspan(*stat.ends, color=COLOURS[1], alpha=0.25, linewidth=0)
        unit = f", {metric.unit}" if metric.unit else ""
        axes.set(xlabel="pairs, the worst first", ylabel=f"{'difference' if paired else metric.title}{unit}", title=title)
        axes.set_xlim(0.5, len(values) + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.ticklabel_format(useOffset=False)
        made.figure.legend(loc="outside lower right", ncols=2)
    return made.svg
