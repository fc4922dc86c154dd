"""Quality against a cost: a point a job, the Pareto front as a step, its points labelled."""

from textwrap import fill
from typing import Any

from diffopt.cost import Cost
from diffopt.job_table import Row
from diffopt.plots.canvas import ACCENT, COLOURS, INK, MARKERS, SOFT, sheet
from diffopt.plots.lines import reach, titled

PLACES = ((9, 8), (9, -8), (-9, 8), (-9, -8), (0, 12), (0, -12), (9, 20), (-9, 20), (9, -20), (-9, -20), (9, 32), (9, -32))
"""Where a label may stand beside its point, in points to the right and up, the best first."""


def trade(rows: list[Row], front: list[Row], metric: dict[str, Any], name: str, cost: Cost, keys: list[str]) -> str:
    """`keys` are the swept ones. Series are the values of the first that is no number, as the format."""
    there = [r for r in rows if r.job in cost.values and name in r.metrics]
    told = next((k for k in keys if len({r.value(k) for r in there}) > 1 and _words(there, k)), None)
    series = list(dict.fromkeys(r.value(told) if told else None for r in there))
    with sheet(f"{metric['title']} against {cost.title[0].lower()}{cost.title[1:]}, with the Pareto front", 7.2, 4.4) as made:
        axes = made.axes()
        axes.grid(True)
        axes.margins(0.08, 0.1)
        at = {r.job: (cost.values[r.job] * cost.scale, r.metrics[name]["candidate"]["mean"]) for r in there}
        for row in there:
            i = series.index(row.value(told) if told else None) % len(COLOURS)
            on = row in front
            axes.errorbar(
                *([v] for v in at[row.job]),
                yerr=reach([row.metrics[name]["candidate"]]),
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
        for i, value in enumerate(series if told else []):
            assert told is not None
            axes.plot(
                [], [], MARKERS[i % len(MARKERS)], color=COLOURS[i % len(COLOURS)], label=f"{told.rpartition('.')[2]}={value}"
            )
        reference = {r.metrics[name]["reference"]["mean"] for r in there if "reference" in r.metrics[name]}
        if len(reference) == 1:
            axes.axhline(*reference, color=INK, linestyle=":", linewidth=1.2, label="full precision")
        axes.plot([], [], "-", color=ACCENT, label="Pareto front")
        longest = max(len(text) for text in axes.get_legend_handles_labels()[1])
        made.figure.legend(loc="outside upper left", ncols=max(1, min(4, 84 // (longest + 8))))
        axes.set(
            xlabel=f"{cost.title}, {cost.unit} (less is better)", ylabel=f"{titled(metric)} ({metric['better']} is better)"
        )
        axes.ticklabel_format(useOffset=False)
        labels = [(r, f"{r.job}: {_short(r, keys)}" if r in front else r.job) for r in front]
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
    from diffopt.numeric import numbers

    return numbers(rows, key) is None


def annotate(
    figure: Any, axes: Any, labels: list[tuple[tuple[float, float], str, bool]], points: list[tuple[float, float]]
) -> None:
    """Labels beside their points where they cover nothing; a front's label is drawn in any case, another's only there."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # the layout decides where the points are
    at, inch = axes.transData.transform, figure.dpi / 72
    dots = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in at(points)]
    placed: list[Any] = []
    for where, text, must in labels:
        style = {"fontsize": 8.5, "color": INK if must else SOFT, "fontweight": "bold" if must else "normal"}
        note = axes.annotate(text, where, (0, 0), textcoords="offset points", zorder=5, **style)
        note.set_in_layout(False)
        size, (x, y) = note.get_window_extent(), at(where)
        choices: list[tuple[int, int, Any, int, int]] = []
        for right, up in PLACES:
            left = x + right * inch - (0 if right > 0 else size.width if right < 0 else size.width / 2)
            below = y + up * inch - (0 if up > 0 else size.height)
            box = Bbox.from_bounds(left, below, size.width, size.height)
            covered = sum(box.overlaps(other) for other in [*placed, *dots]) + 10 * _outside(box, figure.bbox)
            choices.append((covered, len(choices), box, right, up))
        least, _, box, right, up = min(choices)
        if least and not must:
            note.remove()
            continue
        note.set(position=(right, up), ha="left" if right > 0 else "right" if right < 0 else "center")
        note.set_va("bottom" if up > 0 else "top")
        placed.append(box)


def _outside(box: Any, frame: Any) -> bool:
    return bool(box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1)
