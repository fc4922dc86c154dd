"""The machine that something was made or timed on, as several files have it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Machine:
    host: str | None = None
    cpu: str
    cores: int
    gpus: Sequence[str]
    """Their names."""
