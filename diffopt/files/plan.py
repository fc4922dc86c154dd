"""`plan.json`: what built a serialized engine, and what can run it."""

from dataclasses import dataclass

from diffopt.files.graph import Profile
from diffopt.files.json_file import JsonFile


@dataclass(frozen=True)
class PartPlan:
    """The engine of one part of a graph that is cut."""

    file: str
    bytes: int
    profiles: tuple[Profile, ...]
    reused: bool
    """Steps that reuse do without it."""


@dataclass(frozen=True)
class EnginePlanFile(JsonFile):
    NAME = "plan.json"

    builder: str
    version: str
    target: str
    """The GPUs that can run it."""
    profiles: tuple[Profile, ...]
    """Static graphs have none."""
    builder_optimization_level: int
    bytes: int
    """Of all its files."""
    format: str | None
    """The graph's; None for full precision."""
    plans: tuple[PartPlan, ...] | None = None
    """Of a graph that is cut, in the order in which they run."""
