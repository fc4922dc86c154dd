"""A metric over one swept number, a line for each of the other choices; or a dot a job where no number was swept."""

from diffopt.files.metrics import MetricResult
from diffopt.report.plots.canvas import COLOURS, INK, MARKERS, SLIM, SOFT, named_rows, reach, sheet, titled
from diffopt.sweep.grid import Panel
from diffopt.sweep.job_table import Row, settings
from diffopt.sweep.numeric import number


def lines(panel: Panel, metric: MetricResult, name: str) -> str:
    """Means with their 95% intervals, and the mean of the references where the metric has one."""
    assert panel.x is not None
    key = panel.x.key
    with sheet(f"{metric.title} over {key}" + (f", {panel.title}" if panel.title else ""), SLIM, 3.2) as made:
        axes = made.axes()
        axes.grid(True, axis="y")
        groups: dict[str, list[Row]] = {}
        for row in panel.rows:
            if name in row.metrics and number(row.value(key)) is not None:
                groups.setdefault(settings(row, list(panel.series)), []).append(row)
        for i, (title, rows) in enumerate(groups.items()):
            rows.sort(key=lambda r: number(r.value(key)) or 0.0)
            same = len({r.duplicate_of or r.job for r in rows}) == 1 and len(rows) > 1
            stats = [r.metrics[name].candidate for r in rows]
            axes.errorbar(
                [number(r.value(key)) for r in rows],
                [s.mean for s in stats],
                yerr=reach(stats),
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                linestyle="--" if same else "-",
                label=(title or metric.title) + (f" ({key} is not read)" if same else ""),
                capsize=3,
                markersize=6,
                linewidth=1.6,
            )
        for value in _reference(panel.rows, name):
            axes.axhline(value, color=INK, linestyle=":", linewidth=1.2, label="full precision")
        axes.set(xlabel=key, ylabel=titled(metric), title=panel.title)
        if len(panel.x.values) <= 8:
            axes.set_xticks(panel.x.values, panel.x.labels)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            made.figure.legend(loc="outside upper left", ncols=1 + (len(groups) > 3 and max(map(len, groups)) < 18))
    return made.svg


def dots(panel: Panel, metric: MetricResult, name: str) -> str:
    """A row a job from the first down: its settings, in the whole width, and below them the mean and its 95% interval."""
    jobs = [r for r in panel.rows if name in r.metrics]
    labels = [f"{r.job}: {settings(r, list(panel.series))}" for r in jobs]
    with named_rows(f"{metric.title} of each job", labels) as (made, axes, marks):
        for row, mark in zip(jobs, marks, strict=True):
            stat, places = row.metrics[name].candidate, {"color": COLOURS[0], "capsize": 3}
            axes.errorbar([stat.mean], [mark], xerr=reach([stat]), fmt="o", markersize=6, **places)
        for value in _reference(panel.rows, name):
            axes.axvline(value, color=INK, linestyle=":", linewidth=1.2, label="full precision")
            made.figure.legend(loc="outside upper right")
        axes.set(xlabel=titled(metric))
        axes.spines["left"].set_color(SOFT)
    return made.svg


def _reference(rows: tuple[Row, ...], name: str) -> list[float]:
    """The one mean of the references, where all jobs have the same."""
    found = {m.reference.mean for r in rows if (m := r.metrics.get(name)) and m.reference}
    return list(found) if len(found) == 1 else []
