"""`export.json`: what a folder that left the store was written from, and every file in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from diffopt.files.json_file import JsonFile


@dataclass(frozen=True)
class Written:
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ExportFile(JsonFile):
    NAME = "export.json"
    SCHEMA: ClassVar[str | None] = "diffopt.export/1"

    way: str
    """As `diffopt store export --as` names it."""
    source: str
    """The digest of the base model's files."""
    artifacts: Mapping[str, str]
    """By kind the fingerprints of what it was written from."""
    whole: bool
    """Whether the rest of the pipeline is there."""
    files: Mapping[str, Written]
    """By name within the folder; itself left out."""
