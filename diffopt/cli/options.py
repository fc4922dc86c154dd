"""The YAML files that Hydra serves: recipes and options of groups, ours, a package's and the user's, with their comments.

Hydra must be initialized, as within `initialize_config_dir`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType

from diffopt.cli.searchpath import GROUP, READER

PART = re.compile(r"(Needs|Run|Expect):\s*")
"""Of a recipe's comment, begins a part with a name."""


@dataclass(frozen=True)
class Option:
    group: str
    name: str
    place: str
    """Its file, or `pkg://PACKAGE/FILE`."""
    text: str

    @property
    def comment(self) -> list[str]:
        """The lines that it opens with, after the one of `@package`."""
        found = []
        for line in self.text.splitlines():
            if not line.startswith("#"):
                break
            if not line.startswith("# @package"):
                found.append(line.lstrip("#").strip())
        return found

    @property
    def about(self) -> str:
        """The first sentence of its comment; empty where it has none."""
        said = PART.split(" ".join(self.comment), maxsplit=1)[0].strip()
        return re.split(r"\.\s+(?=[A-Z`])", said, maxsplit=1)[0].rstrip(".")

    def part(self, name: str) -> str:
        """`Needs`, `Run` or `Expect` of a recipe's comment; empty where it has none."""
        parts = PART.split(" ".join(self.comment))
        return next((text.strip() for head, text in zip(parts[1::2], parts[2::2], strict=True) if head == name), "")

    @property
    def content(self) -> dict[str, Any]:
        found = yaml.load(self.text, READER)
        return found if isinstance(found, dict) else {}


def options(group: str) -> list[Option]:
    """Of a group, or of the recipes, by name. Of two of one name the one that Hydra takes."""
    found: dict[str, Option] = {}
    for option in _served(group):
        found.setdefault(option.name, option)
    return [found[name] for name in sorted(found)]


def recipes() -> list[Option]:
    return options(GROUP)


def _served(group: str) -> Iterator[Option]:
    loader: Any = GlobalHydra.instance().config_loader()
    for source in loader.get_sources():
        if source.scheme() not in ("file", "pkg", "recipes") or not source.is_group(group):
            continue
        folder = "" if source.scheme() == "recipes" else f"{group}/"
        root: Any = resources.files(source.path) if source.scheme() == "pkg" else Path(source.path)
        for name in source.list(group, ObjectType.CONFIG):
            file = root.joinpath(f"{folder}{name}.yaml")
            if file.is_file():  # a flat directory of recipes lists itself alone
                place = f"pkg://{source.path}/{folder}{name}.yaml" if source.scheme() == "pkg" else str(file)
                yield Option(group, name, place, file.read_bytes().decode("utf-8-sig", errors="replace"))
