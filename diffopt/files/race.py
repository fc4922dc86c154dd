"""`race.json`: a race over the settings of a sweep, who left it when and why, and the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from diffopt.files.json_file import JsonFile

Why = Literal["below", "dearer", "worse", "failed"]
"""Shown to break a floor; of more cost than one that is shown to keep them all; worse than one of no more cost; or its job
failed."""


@dataclass(frozen=True, kw_only=True)
class Left:
    look: int
    """The round, from 1."""
    prompts: int
    """That it had drawn."""
    why: Why
    floor: str | None = None
    by: int | None = None
    """The number of the setting that it left for."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    number: int
    """Its directory in the sweep's."""
    overrides: Sequence[str]
    """Without those that all settings have in common."""
    prompts: int
    """That it has drawn; 0 of one that never entered."""
    left: Left | None
    shown: bool
    """Whether it is shown to keep every floor."""
    keeps: bool
    """Whether its means do."""
    means: Mapping[str, float]
    """By metric."""
    costs: Mapping[str, float | None]
    """`latency` s, `bytes`, `memory` bytes, `steps`, `work` bytes: weights times the denoising steps that are computed. None
    where it is not known, or not claimed."""
    damage: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What of the rest is to be said beside the answer."""

    runner_up: int | None
    ties: Sequence[int]
    """Of the same cost, and not told apart from the answer."""
    doubtful: Sequence[int]
    """Of less cost; they may keep the floors too, which their pictures do not show."""


@dataclass(frozen=True, kw_only=True)
class RaceFile(JsonFile):
    NAME = "race.json"
    SCHEMA = "diffopt.race/1"

    want: str
    by: str
    """The cost that stands for it: `work` for the latency of what is simulated."""
    floors: Sequence[str]
    first: str
    """The metric that tells better from worse."""
    rounds: Sequence[int]
    chance: float
    looks: int
    """Rounds that there were."""
    pictures: int
    """Drawn by all settings."""
    whole: int
    """That drawing all of every setting takes."""
    entries: tuple[Entry, ...]
    chosen: int | None
    shown: bool
    """Whether the chosen one is shown to keep every floor; else its means do."""
    ending: Ending | None
    notes: Sequence[str]
