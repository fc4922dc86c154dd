"""Tables of Markdown as the hub shows it: what stands in a cell is text, whatever it holds."""

from collections.abc import Iterator, Sequence

SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>#|"})


def cell(value: str) -> str:
    """A text that is nothing but itself: one line, no markup, no HTML."""
    return " ".join(value.split()).translate(SPECIAL)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Of cells that are Markdown."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
