"""Plots of a measured sensitivity as SVG: errors by layer and denoising step, and the worst layers of each format."""

from typing import Any

from diffopt.report.plots.canvas import BAR, COLOURS, SLIM, named_rows, sheet
from diffopt.report.sensitivity import Reading

LABELS, BARS = 70, 15
"""Layers that a heat map can name on its axis; worst layers that are shown as bars."""
LETTERS, POINTS, EM = 38, 6.5, 0.54
"""Of a layer's name in a line; the size of its letters, and their mean width in its ems."""
ERROR = "relative output error, %"


def heats(reading: Reading) -> dict[str, str]:
    """By format a map of layer by denoising step; all have one logarithmic scale."""
    every = [100 * s for name in reading.formats for x in reading.layers(name) for s in x.steps if s is not None and s > 0] or [
        0.1
    ]
    ends = min(every), max(*every, 0.2)
    return {name: _heat(reading, name, ends) for name in reading.formats}


def _heat(reading: Reading, name: str, ends: tuple[float, float]) -> str:
    names = [x.name for x in reading.content.layers]
    values = {x.name: [100 * (s or 0.0) for s in x.steps] for x in reading.layers(name)}
    steps, nothing = reading.content.steps, float("nan")
    shown = [[v if v > 0 else nothing for v in values.get(n, [nothing] * reading.content.steps)] for n in names]
    stride = -(-len(names) // LABELS)
    labels = [folded(n) for n in names[::stride]]
    longest = max(len(line) for label in labels for line in label.splitlines())
    line = 0.15 * max(1.4 if "\n" in label else 1.0 for label in labels)
    height = 1.3 + line * len(labels)
    width = max(SLIM, longest * POINTS * EM / 72 + 1.9)
    with sheet(f"Relative output error of every layer in every denoising step, {name}", width, height) as made:
        from matplotlib import colors

        axes = made.axes()
        image = axes.imshow(
            shown,
            norm=colors.LogNorm(*ends),
            cmap="viridis",
            aspect="auto",
            interpolation="none",
            extent=(0.5, steps + 0.5, len(names), 0),
        )
        axes.set(title=name, xlabel="denoising step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        places = [k + 0.5 for k in range(0, len(names), stride)]
        axes.set_yticks(places, labels, fontsize=POINTS, linespacing=1.0)
        axes.tick_params("y", length=2)
        _scale(made.figure, image, axes)
    return made.svg


def _scale(figure: Any, image: Any, axes: Any) -> None:
    bar = figure.colorbar(
        image, ax=axes, orientation="horizontal", label=ERROR, format="%g", fraction=0.02, aspect=30, pad=0.01
    )
    bar.minorticks_off()
    bar.outline.set_visible(False)


def folded(name: str) -> str:
    """A layer's whole name, in lines that leave room for the map; broken at its dots."""
    lines = [""]
    for i, part in enumerate(name.split(".")):
        part = part if i == 0 else f".{part}"
        if lines[-1] and len(lines[-1]) + len(part) > LETTERS:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def bars(reading: Reading) -> dict[str, str]:
    """By format its worst layers, sorted; every name stands over its bar."""
    return {name: _bars(reading, name) for name in reading.formats}


def _bars(reading: Reading, name: str) -> str:
    worst = reading.worst(name)[:BARS]
    title = f"{name}: the worst {len(worst)} of {len(reading.layers(name))} layers"
    with named_rows(f"Relative output error, {title}", [x.name for x in worst], 7.5) as (made, axes, marks):
        axes.barh(marks, [100 * x.error for x in worst], height=BAR, color=COLOURS[0])
        axes.set(title=title, xlabel=ERROR)
    return made.svg
