"""A figure that becomes an SVG of the page: vector, text as text, in the page's own colours, light and dark."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

from diffopt.quiet import hushed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, LINE, ACCENT, CARD = "#010101", "#010102", "#010103", "#010104", "#010105"
"""Stand for the page's colours of these names: it has others at night."""
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
    with hushed():  # the first import looks through the machine's fonts, and says so
        import matplotlib
        from matplotlib.figure import Figure
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        made = Sheet(Figure(figsize=(width, height), layout="constrained"))
        yield made
        laid_out(made.figure)
        out = StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        made.figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    made.svg = _inline(out.getvalue(), name)


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
