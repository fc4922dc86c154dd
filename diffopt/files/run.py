"""`run.json`: what a run was asked for, and the artifacts that its steps made or found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from diffopt.files.json_file import JsonFile

State = Literal["made", "cached", "spare", "helped"]
"""What became of a step: `cached`, `made`, `spare`: not in the store, and nothing that had to be made needs it, or `helped`:
another machine makes it, and this one had a part in it."""


@dataclass(frozen=True)
class RunStep:
    name: str
    kind: str
    """Of its artifact."""
    fingerprint: str
    state: State
    seconds: float
    """That this run took for it."""
    inputs: Sequence[str]
    """Names of the steps that it takes from."""


@dataclass(frozen=True)
class RunFile(JsonFile):
    NAME = "run.json"
    SCHEMA = "diffopt.run/1"

    name: str
    """The recipe's."""
    overrides: Sequence[str]
    config: str
    """The recipe as composed, YAML."""
    notes: Sequence[str]
    wanted: Sequence[str]
    """Names of the steps that it was for."""
    steps: tuple[RunStep, ...]
