"""`diffopt ls`: the recipes and every group's options, a line each."""

import json
import shutil
import sys
from typing import Any

from hydra import initialize_config_dir

from diffopt.cli.arguments import Parser
from diffopt.cli.options import Option, options
from diffopt.cli.searchpath import GROUP, bundled
from diffopt.errors import ConfigError
from diffopt.groups import PICKS
from diffopt.groups.validate import nearest
from diffopt.text import printable

SCHEMA = "diffopt.ls/1"
KINDS = (GROUP, *PICKS)
NARROWEST = 40
"""Columns; a terminal that says that it has fewer is not believed."""


def parser() -> Parser:
    made = Parser("diffopt ls", description="The recipes and the options of every group, a line each.")
    made.add_argument("groups", nargs="*", metavar="GROUP", help=f"only these: {', '.join(KINDS)}")
    made.add_argument("--json", action="store_true", help=f"as JSON ({SCHEMA}), with files and what recipes need")
    made.add_argument("--config-dir", "-cd", help="a directory of your own groups and recipes")
    return made


def offered(words: list[str]) -> list[str]:
    """To complete."""
    return [k for k in KINDS if k not in words]


def command(arguments: list[str]) -> None:
    """Raises ConfigError for what is no group."""
    given = parser().parse_intermixed_args(arguments)
    asked = [_group(g) for g in given.groups] or list(KINDS)
    with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
        found = {group: options(group) for group in dict.fromkeys(asked)}
    print(json.dumps(content(found), indent=1, ensure_ascii=False) if given.json else printable("\n".join(table(found))))


def _group(word: str) -> str:
    """`recipes` and `formats` are as good."""
    name = word.rstrip("=").lstrip("+")
    for known in KINDS:
        if name in (known, f"{known}s"):
            return known
    raise ConfigError(f"diffopt ls: no such group (got {word!r}); {nearest(name, KINDS)}")


def table(found: dict[str, list[Option]]) -> list[str]:
    """On a terminal cut to its width, with the command that uses one above each group."""
    wide = max(shutil.get_terminal_size().columns, NARROWEST) if sys.stdout.isatty() else None
    name_width = max((len(o.name) for each in found.values() for o in each), default=0)
    lines: list[str] = []
    for group, each in found.items():
        how = "diffopt +recipe=NAME" if group == GROUP else f"{group}=NAME"
        lines += [*([""] if lines else []), f"{'recipes' if group == GROUP else group}  ({how})"]
        lines += [f"  {o.name:{name_width}}  {o.about or '(its file opens with no comment)'}" for o in each]
    return [line if wide is None or len(line) <= wide else f"{line[: wide - 3]}..." for line in lines]


def content(found: dict[str, list[Option]]) -> dict[str, Any]:
    """What `--json` prints: a list for each group by its name, and `recipe`."""
    rows: dict[str, Any] = {"schema": SCHEMA}
    for group, each in found.items():
        rows[group] = [{"name": o.name, "about": o.about, "file": o.place} for o in each]
        if group == GROUP:
            for row, o in zip(rows[group], each, strict=True):
                row |= {part.lower(): o.part(part) for part in ("Needs", "Run", "Expect")}
    return rows
