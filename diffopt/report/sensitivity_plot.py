"""Plots of a measured sensitivity as SVG: errors by layer and denoising step, and the worst layers of each format."""

import base64
from io import BytesIO
from typing import Any

from diffopt.report.plots.canvas import laid_out, styled
from diffopt.report.sensitivity import Reading

LABELS, BARS = 70, 15
"""Layers that a heat map can name on its axis; worst layers that are shown as bars."""
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "diffopt",  # the same bytes every time
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
ERROR = "relative output error, %"


def heat(reading: Reading) -> str:
    """A map of layer by denoising step for each format, on one logarithmic scale. Returns a data URI."""
    names = [x.name for x in reading.content.layers]
    values = {f: {x.name: [100 * (s or 0.0) for s in x.steps] for x in reading.layers(f)} for f in reading.formats}
    every = [v for rows in values.values() for row in rows.values() for v in row if v > 0]
    steps = reading.content.steps
    nothing = [float("nan")] * steps
    with styled(STYLE):
        from matplotlib import colors
        from matplotlib.figure import Figure

        many = len(reading.formats)
        figure = Figure(figsize=(2.6 + 1.7 * many, min(1.4 + 0.15 * len(names), 14)), layout="constrained")
        axes = figure.subplots(1, many, sharey=True, squeeze=False)[0]
        scale = colors.LogNorm(min(every, default=0.1), max([*every, 0.2]))
        for i, (axis, name) in enumerate(zip(axes, reading.formats, strict=True)):
            shown = [[v if v > 0 else float("nan") for v in values[name].get(n, nothing)] for n in names]
            image = axis.imshow(
                shown, norm=scale, cmap="viridis", aspect="auto", interpolation="none", extent=(0.5, steps + 0.5, len(names), 0)
            )
            axis.set_title(name)
            axis.set_xlabel("denoising step")
            axis.xaxis.get_major_locator().set_params(integer=True)
            stride = -(-len(names) // LABELS)
            if i == 0:
                axis.set_yticks([k + 0.5 for k in range(0, len(names), stride)], names[::stride], fontsize=6)
        figure.colorbar(image, ax=list(axes), label=ERROR, shrink=0.6, format="%g")
        return _uri(figure)


def bars(reading: Reading) -> str:
    """The worst layers of each format, sorted. Returns a data URI."""
    with styled(STYLE):
        from matplotlib.figure import Figure

        many = len(reading.formats)
        figure = Figure(figsize=(7.5, 0.5 + many * (0.7 + 0.15 * BARS)), layout="constrained")
        for axis, name in zip(figure.subplots(many, 1, squeeze=False)[:, 0], reading.formats, strict=True):
            worst = reading.worst(name)[:BARS]
            axis.barh([x.name for x in worst], [100 * x.error for x in worst], color="#1f5fa8", height=0.7)
            axis.invert_yaxis()
            axis.tick_params("y", labelsize=6)
            axis.set_title(f"{name}: the worst {len(worst)} of {len(reading.layers(name))} layers", loc="left")
            axis.set_xlabel(ERROR)
        return _uri(figure)


def _uri(figure: Any) -> str:
    laid_out(figure)
    out = BytesIO()
    figure.savefig(out, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(out.getvalue()).decode()}"
