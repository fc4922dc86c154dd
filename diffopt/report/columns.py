"""Tables for screens on which columns do not fit: every cell says its column's heading, and the style sheet stacks them."""

import re
from html import escape, unescape

FEW = 2
"""Columns that fit beside each other on any screen."""


def labelled(page: str) -> str:
    """The page with an attribute `data-label` on every cell of a table's body: what its column's heading says.

    A table of more than FEW columns gets the attribute `data-stacks`, unless it says by `data-close` that it fits as it is;
    a cell that has nothing to say gets `data-none`. Headings' remarks, in <small>, are left out of labels.
    """
    return re.sub(r"<table\b([^>]*)>(.*?)</table>", _table, page, flags=re.DOTALL)


def _table(found: re.Match[str]) -> str:
    about, inside = found.groups()
    head, opened, body = inside.partition("<tbody>")
    names = [_words(re.sub(r"<small>.*?</small>", "", cell, flags=re.DOTALL)) for cell in _cells(head)]
    stacks = " data-stacks" if len(names) > FEW and "data-close" not in about else ""
    rows = re.sub(r"(<tr\b[^>]*>)(.*?)(?=</tr>)", lambda row: row[1] + _row(row[2], names), body, flags=re.DOTALL)
    return f"<table{about}{stacks}>{head}{opened}{rows}</table>"


CELL = re.compile(r"<(t[hd])\b([^>]*)>(.*?)</\1>", re.DOTALL)


def _cells(row: str) -> list[str]:
    return [found[3] for found in CELL.finditer(row)]


def _row(row: str, names: list[str]) -> str:
    """Cells by their places; one that takes several columns is of none."""
    place = iter(range(len(names)))

    def cell(found: re.Match[str]) -> str:
        tag, about, inside = found.groups()
        at = next(place, None)
        if at is None or "colspan" in about:
            return found[0]
        nothing = " data-none" if _words(inside) in ("", "\N{EN DASH}") and "<i" not in inside else ""
        return f'<{tag}{about} data-label="{escape(names[at])}"{nothing}>{inside}</{tag}>'

    return CELL.sub(cell, row)


def _words(markup: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", markup)).split())
