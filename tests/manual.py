"""The manual: the README.md of every folder that has one, and what stands in them. tests/test_readme.py keeps it true."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("conf", "recipes", "diffopt", "tests")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:^|[ \w=-]+ )(diffopt .*)")
"""Behind `time` and `srun` too."""


@dataclass(frozen=True)
class Page:
    path: Path

    @property
    def name(self) -> str:
        """From the repository's top."""
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """All but the fenced blocks."""
        return FENCED.sub("", self.text)

    def blocks(self, *languages: str) -> list[str]:
        return [body for language, body in FENCED.findall(self.text) if language in languages]

    @cached_property
    def spans(self) -> list[str]:
        """Inline code, on one line each."""
        return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", self.prose)]

    @cached_property
    def lines(self) -> list[str]:
        """Of the shell, without comments: in blocks, and inline."""
        blocks = [line.split(" #")[0].strip() for block in self.blocks("sh", "bash", "console") for line in block.splitlines()]
        return [line for line in [*blocks, *self.spans] if line and not line.startswith("#")]

    @property
    def commands(self) -> Iterator[str]:
        """Every line of the shell that runs diffopt, from `diffopt` on, once."""
        found = (COMMAND.fullmatch(line) for line in self.lines)
        yield from dict.fromkeys(match[1] for match in found if match)

    @property
    def links(self) -> list[tuple[str, str]]:
        """File and anchor of every link, or picture, within the repository."""
        found = re.findall(r"\]\(([^)\s]+)\)", self.prose)
        return [(file, anchor) for file, _, anchor in (x.partition("#") for x in found) if "://" not in file]

    def to(self, file: str) -> Path:
        """Where a link leads."""
        return (self.path.parent / file).resolve() if file else self.path

    @property
    def anchors(self) -> set[str]:
        """As hosting sites make them of headings."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}

    def table(self, first: str, within: str = "") -> list[list[str]]:
        """The rows of the table whose first column is called `first`, under the heading `within` where one is named."""
        text = self.text
        if within:
            level = re.search(rf"^(#+) {re.escape(within)}\n", text, re.MULTILINE)
            assert level, f"{self.name} has no heading {within!r}"
            text = re.split(rf"^#{{1,{len(level[1])}}} ", text[level.end() :], maxsplit=1, flags=re.MULTILINE)[0]
        rows: list[list[str]] = []
        inside = False
        for line in text.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
            if cells and inside and not cells[0].startswith("---"):
                rows.append(cells)
            inside = bool(cells) and (inside or cells[0] == first)
            if rows and not inside:
                break
        assert rows, f"{self.name} has no table whose first column is {first!r}"
        return rows

    def column(self, first: str, within: str = "") -> list[str]:
        """What that table's first column names."""
        return [name for row in self.table(first, within) for name in named(row[0])]


def named(cell: str) -> list[str]:
    """The code in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def words(command: str) -> list[str]:
    """The arguments of a diffopt command."""
    return shlex.split(command)[1:]


PAGES = [Page(ROOT / "README.md"), *(Page(p) for d in FOLDERS for p in sorted((ROOT / d).rglob("README.md")))]


def page(name: str) -> Page:
    return next(p for p in PAGES if p.name == name)
