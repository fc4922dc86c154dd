"""Quality against a cost: a point a job, the Pareto front as a step, its points labelled."""

from textwrap import fill

from diffopt.files.metrics import MetricResult
from diffopt.report.plots.canvas import ACCENT, COLOURS, INK, MARKERS, SLIM, annotate, fitted, reach, sheet, titled
from diffopt.sweep.cost import Cost
from diffopt.sweep.job_table import Row


def trade(rows: list[Row], front: list[Row], metric: MetricResult, name: str, cost: Cost, keys: list[str]) -> str:
    """`keys` are the swept ones. Series are the values of the first that is no number, as the format."""
    return fitted(lambda width: _drawn(rows, front, metric, name, cost, keys, width), 7.2)


def _drawn(
    rows: list[Row], front: list[Row], metric: MetricResult, name: str, cost: Cost, keys: list[str], width: float
) -> str:
    """`width` inches wide. A slim one has no room for settings: its labels are jobs, of which the table below says more."""
    wide = width > SLIM
    there = [r for r in rows if r.job in cost.values and name in r.metrics]
    key = next((k for k in keys if len({r.value(k) for r in there}) > 1 and _words(there, k)), None)
    series = list(dict.fromkeys(r.value(key) if key else None for r in there))
    with sheet(f"{metric.title} against {cost.title[0].lower()}{cost.title[1:]}, with the Pareto front", width, 4.4) as made:
        axes = made.axes()
        axes.grid(True)
        axes.margins(0.08, 0.1)
        at = {r.job: (cost.values[r.job] * cost.scale, r.metrics[name].candidate.mean) for r in there}
        for row in there:
            i = series.index(row.value(key) if key else None) % len(COLOURS)
            on = row in front
            axes.errorbar(
                *([v] for v in at[row.job]),
                yerr=reach([row.metrics[name].candidate]),
                xerr=_wide(cost, row.job),
                fmt=MARKERS[i],
                color=COLOURS[i],
                alpha=1 if on else 0.55,
                markersize=9 if on else 6,
                markeredgecolor=INK if on else COLOURS[i],
                elinewidth=1,
                capsize=2,
                zorder=4 if on else 3,
            )
        if len(front) > 1:
            steps = [at[r.job] for r in front]
            axes.step(*zip(*steps, strict=True), where="post", color=ACCENT, linewidth=1.4, zorder=2)
        for i, value in enumerate(series if key else []):
            assert key is not None
            axes.plot(
                [], [], MARKERS[i % len(MARKERS)], color=COLOURS[i % len(COLOURS)], label=f"{key.rpartition('.')[2]}={value}"
            )
        reference = {base.mean for r in there if (base := r.metrics[name].reference)}
        if len(reference) == 1:
            axes.axhline(*reference, color=INK, linestyle=":", linewidth=1.2, label="full precision")
        axes.plot([], [], "-", color=ACCENT, label="Pareto front")
        longest = max(len(text) for text in axes.get_legend_handles_labels()[1])
        made.figure.legend(loc="outside upper left", ncols=max(1, min(4, int(11.7 * width) // (longest + 8))))
        axes.set(xlabel=f"{cost.title}, {cost.unit} (less is better)", ylabel=f"{titled(metric)} ({metric.better} is better)")
        axes.ticklabel_format(useOffset=False)
        labels = [(r, f"{r.job}: {_short(r, keys)}" if r in front and wide else r.job) for r in front]
        labels += [(r, r.job) for r in there if r not in front]
        annotate(made.figure, axes, [(at[r.job], text, r in front) for r, text in labels], list(at.values()))
    return made.svg


def _wide(cost: Cost, job: str) -> list[list[float]] | None:
    """How far the interval of a measured cost reaches to both sides."""
    if job not in cost.ranges:
        return None
    low, high = cost.ranges[job]
    return [[(cost.values[job] - low) * cost.scale], [(high - cost.values[job]) * cost.scale]]


def _short(row: Row, keys: list[str]) -> str:
    """The settings with the last parts of their keys, in lines of a width that a label can have."""
    last = [k.rpartition(".")[2] for k in keys]
    named = last if len(set(last)) == len(last) else keys
    found = [f"{name}={value}" for name, key in zip(named, keys, strict=True) if (value := row.value(key)) is not None]
    return fill(", ".join(found), 40, break_on_hyphens=False)


def _words(rows: list[Row], key: str) -> bool:
    from diffopt.sweep.numeric import numbers

    return numbers(rows, key) is None
