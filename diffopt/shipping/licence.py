"""The licence of the base: its files, and what its own card says of it. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from diffopt.store import assets
from diffopt.store.source import CARD, LICENCES

OTHER = "other"
"""The hub's word for a licence that it has no name for."""


@dataclass(frozen=True)
class Licence:
    id: str | None = None
    """As the hub names licences."""
    name: str | None = None
    link: str | None = None
    files: tuple[Path, ...] = ()
    """With its text, or what must be passed on with the weights."""

    @property
    def line(self) -> str:
        """For people."""
        said = self.name or (self.id if self.id != OTHER else None)
        texts = " and ".join(f"[{p.name}]({p.name})" for p in self.files)
        if said is None:
            return f"That of the base model, which the hub has no name for: see {texts}." if texts else UNKNOWN
        linked = f"[{said}]({self.link})" if self.link and self.link.startswith("https://") else said
        return f"That of the base model: {linked}" + (f"; its text is in {texts}." if texts else ".")


UNKNOWN = "Unknown: the base model's files name none. Ask its makers before you pass these weights on."


def of(directory: Path | None) -> Licence:
    """Of a model's directory; nothing known where it is not here."""
    if directory is None:
        return Licence()
    within = [directory, *([directory.parent] if directory.is_relative_to(assets.ROOT) else [])]
    found = {p.name: p for folder in reversed(within) for glob in LICENCES for p in sorted(folder.glob(glob)) if p.is_file()}
    said = _card(directory / CARD)
    named = {k: str(said[key]) if said.get(key) else None for k, key in FIELDS.items()}
    files = tuple(found.values())
    if files and named["id"] in (None, OTHER) and not (named["link"] or "").startswith("https://"):
        named |= {"id": OTHER, "link": files[0].name}
    return Licence(**named, files=files)


FIELDS = {"id": "license", "name": "license_name", "link": "license_link"}


def _card(path: Path) -> dict[str, Any]:
    """The front matter of the model's own card; empty where there is none, or none that can be read."""
    if not path.is_file():
        return {}
    from huggingface_hub import metadata_load

    try:
        return metadata_load(path) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
