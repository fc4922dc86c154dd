"""What a cache method is. Importing this imports no library that computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator

from diffopt.models import Family
from diffopt.view import Group

if TYPE_CHECKING:
    from diffopt.caches.target import Attached, Target


class Settings(Group):
    """The fields of `cache=` under one method, which each method declares: plain values."""

    method: str

    def filled(self, family: Family) -> Self:
        """With the family's own values where none were given; so one left out and one spelled out are the same."""
        return self

    def misfit(self, family: Family, steps: int) -> str | None:
        """What is wrong with them for a run of so many denoising steps, as `FIELD: ... (got X); ...`; else None."""
        return None

    def mismatch(self, names: Sequence[str]) -> str | None:
        """The same for a backbone of these blocks."""
        return None


def _any(_family: Family) -> None:
    return None


@dataclass(frozen=True)
class Method:
    """One method. A package of its own adds one by an entry point of the group `diffopt.caches`: `name = module:METHOD`."""

    name: str
    settings: type[Settings]
    attach: "Callable[[Target, Any], Attached]"
    """Attach it by validated and filled settings. Raises ValueError for what only the model itself shows to be wrong."""
    knob: tuple[str, str]
    """The field that decides how often it hits, and what to do with it where it never did."""
    supports: Callable[[Family], str | None] = field(default=_any)
    """Why it does not work on a family; None where it does."""
    package: tuple[str, str] | None = None
    """A distribution that it needs besides diffopt's own, and what installs it."""


def known_to_diffusers(title: str) -> Callable[[Family], str | None]:
    """`supports` of what builds on diffusers' hooks of a transformer's blocks."""

    def supports(family: Family) -> str | None:
        return None if family.block_cache else f"diffusers' {title} does not know the blocks of {family.name}"

    return supports


def _between(span: tuple[float, float]) -> tuple[float, float]:
    low, high = span
    if not -1 <= low < high <= 1000:
        raise ValueError("is not a span of timesteps; give [low, high] between -1 and 1000")
    return span


Span = Annotated[tuple[float, float], AfterValidator(_between)]
"""Timesteps as schedulers count them, 1000 for noise and 0 for a picture, its ends excluded."""
