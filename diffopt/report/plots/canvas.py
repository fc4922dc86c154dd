"""A figure that becomes an SVG of the page: vector, text as text, in the page's own colours, light and dark."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from io import StringIO
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from diffopt.files.interval import Interval
from diffopt.files.metrics import MetricResult
from diffopt.machine.output import to_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, LINE, ACCENT, CARD = "#010101", "#010102", "#010103", "#010104", "#010105"
"""Stand for the page's colours of these names: it has others at night."""
SLIM = 3.9
"""Inches that a phone's page has room for, 374 of the browser's pixels; a wide page has three of it beside each other."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito 2008: told apart by the colour-blind, and on light and dark."""
MARKERS = "osD^vP"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


class Sheet:
    """What a plot draws on, and its SVG once it is drawn."""

    def __init__(self, figure: "Figure"):
        self.figure = figure
        self.svg = ""

    def axes(self) -> Any:
        return self.figure.add_subplot()


@contextmanager
def sheet(name: str, width: float, height: float) -> Iterator[Sheet]:
    """A figure of `width` x `height` inches; `name` says what it shows to those who cannot see it, and makes its ids."""
    with styled({**STYLE, "svg.hashsalt": f"{name} {width:g}"}):
        from matplotlib.figure import Figure

        made = Sheet(Figure(figsize=(width, height), layout="constrained"))
        yield made
        laid_out(made.figure)
        out = StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        made.figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    made.svg = _inline(out.getvalue(), name)


def fitted(draw: Callable[[float], str], width: float) -> str:
    """What `draw` makes `width` inches wide; beside that, where it is wide, a slim one, which the page shows on a phone."""
    if width <= SLIM:
        return draw(width)
    return "\n".join(draw(w).replace("<svg ", f'<svg class="{kind}" ', 1) for kind, w in (("wide", width), ("slim", SLIM)))


@contextmanager
def styled(settings: dict[Any, Any]) -> Iterator[None]:
    """These of matplotlib's settings and its own defaults; the user's file of them is for other plots."""
    with to_log():  # the first import looks through the machine's fonts, and says so
        import matplotlib
        import matplotlib.figure
    defaults: dict[Any, Any] = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}
    with matplotlib.rc_context({**defaults, **settings}):
        yield


def laid_out(figure: Any) -> None:
    """Place what the figure holds: once, where saving it would do so twice, each time for as long as it takes to draw."""
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine(None)


def _inline(text: str, name: str) -> str:
    """Without what only a file of its own needs; with the page's font and colours."""
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None  # matplotlib writes it
    width = float(box[1].split()[2]) * 4 / 3  # points to the browser's pixels
    body = text[text.index(">", text.index("<svg")) + 1 :].strip()
    # Nothing is clipped: whiskers and thick edges may leave the frame, and a clip is one more id on the page.
    gone = r"<style.*?</style>|<metadata.*?</metadata>|<!--.*?-->|<clipPath.*?</clipPath>|<defs>\s*</defs>"
    body = re.sub(gone, "", re.sub(r' clip-path="[^"]*"', "", body), flags=re.DOTALL)
    body = re.sub(r"<defs>\s*</defs>", "", body)
    used = set(re.findall(r'href="#([^"]*)"', body))
    body = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", body)
    body = re.sub(r"font: ((?:\w+ )*)([\d.]+px) [^;\"]*", lambda m: _font(m[1], m[2]), body)
    for colour, meant in ((INK, "ink"), (SOFT, "soft"), (LINE, "line"), (ACCENT, "accent"), (CARD, "card")):
        body = body.replace(colour, f"var(--{meant})")
    head = f'<svg role="img" aria-label="{escape(name)}" viewBox="{box[1]}" style="--width: {width:.0f}px">'
    return f"{head}\n{body}"


def _font(style: str, size: str) -> str:
    return f"font-size: {size}" + ("; font-weight: 700" if "bold" in style or "700" in style else "")


def titled(metric: MetricResult) -> str:
    return f"{metric.title}, {metric.unit}" if metric.unit else metric.title


def reach(stats: Sequence[Interval]) -> list[list[float]]:
    """How far the intervals reach below and above the means; nowhere for a single picture."""
    ends = [s.ends or (s.mean, s.mean) for s in stats]
    return [
        [s.mean - low for s, (low, _) in zip(stats, ends, strict=True)],
        [high - s.mean for s, (_, high) in zip(stats, ends, strict=True)],
    ]


PLACES = ((9, 8), (9, -8), (-9, 8), (-9, -8), (0, 12), (0, -12), (9, 20), (-9, 20), (9, -20), (-9, -20), (9, 32), (9, -32))
"""Where a label may stand beside its point, in points to the right and up, the best first."""


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


@contextmanager
def named_rows(name: str, labels: Sequence[str], points: float = 9) -> Iterator[tuple[Sheet, Any, list[float]]]:
    """A slim figure with a row for each label, from the first down: the sheet, its axes, and where the rows' marks go.

    A label stands over its mark from the frame's left side on, in as many lines as it takes: beside its mark a long one would
    leave no room for the plot. Heights are in inches from the top; a mark has BAR.
    """
    letters = int(72 * SLIM * 0.9 / (0.6 * points))
    lines = [wrap(label, letters, break_on_hyphens=False) for label in labels]
    line, marks, down = 1.15 * points / 72, [], 0.06
    for text in lines:
        down += len(text) * line + 0.04 + BAR / 2
        marks.append(down)
        down += BAR / 2 + 0.1
    with sheet(name, SLIM, down + 0.95) as made:
        axes = made.axes()
        axes.grid(True, axis="x")
        axes.set_axisbelow(True)
        axes.set(ylim=(down, 0))
        axes.set_yticks([])
        for text, mark in zip(lines, marks, strict=True):
            style = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "linespacing": 1.0}
            note = axes.annotate("\n".join(text), (0, mark - BAR / 2 - 0.03), (3, 0), va="bottom", fontsize=points, **style)
            note.set_in_layout(False)
        yield made, axes, marks


BAR = 0.16
"""Inches."""


def _outside(box: Any, frame: Any) -> bool:
    return bool(box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1)
