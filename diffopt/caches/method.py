"""What a cache method is. Importing this imports no library that computes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, ValidationError, model_validator

from diffopt.caches.knob import Knob
from diffopt.caches.knob_search import KnobSearch, floors_text
from diffopt.errors import suggestion
from diffopt.models import Family
from diffopt.schema import Group

if TYPE_CHECKING:
    from diffopt.caches.target import Attached, Target


class Settings(Group):
    """The fields of `cache=` under one method, which each method declares: plain values."""

    method: str
    search: KnobSearch | None = None
    """Find the value of a knob instead of being given one."""

    knobs: ClassVar[tuple[Knob, ...]] = ()
    """Fields that `search` can turn, the usual one first."""

    @model_validator(mode="before")
    @classmethod
    def _leaves_its_knob_open(cls, data: Any) -> Any:
        """null is no value of most knobs, and says under a search what leaving it out says."""
        if isinstance(data, Mapping) and isinstance(search := data.get("search"), Mapping):
            for knob in cls.knobs:
                if knob.name == (search.get("knob") or cls.knobs[0].name) and data.get(knob.name) is None:
                    return {**data, knob.name: knob.usual}
        return data

    @model_validator(mode="after")
    def _can_be_searched(self) -> Self:
        if self.search is None:
            return self
        if not self.knobs:
            raise ValueError(f"search: {self.method} has no knob that can be searched (got a search); drop it")
        knob = self.knob
        if (value := getattr(self, knob.name)) not in (None, knob.usual):
            raise ValueError(
                f"{knob.name}: is what cache.search looks for (got {value}); set it to null, or name another cache.search.knob"
            )
        self._check_ends(self.search, knob)
        return self

    def _check_ends(self, search: KnobSearch, knob: Knob) -> None:
        low, high = (knob.low if search.low is None else search.low, knob.high if search.high is None else search.high)
        for name, end in (("low", search.low), ("high", search.high)):
            if knob.whole and end is not None and end != int(end):
                raise ValueError(f"search.{name}: {knob.name} is a whole number (got {end:g}); round it")
        if high is not None and low >= high:
            name, other = ("high", f"low={low:g}") if search.high is not None else ("low", f"high={high:g}")
            advice = "raise it, or lower cache.search.low" if name == "high" else "lower it, or give cache.search.high too"
            raise ValueError(f"search.{name}: leaves nothing between it and {other} (got {getattr(search, name):g}); {advice}")
        given = {n: v for n, v in self.model_dump().items() if n != "search"}
        for name, end in (("low", low), ("high", high)):
            if end is None:
                continue
            try:
                type(self).model_validate(given | {knob.name: int(end) if knob.whole else end})
            except ValidationError as e:
                what = e.errors()[0]["msg"].removeprefix("Value error, ").split(" (got ")[0].split("; ")[0]
                what = what.removeprefix(f"{knob.name}: ")
                raise ValueError(
                    f"search.{name}: is no value of {knob.name}: {what[0].lower() + what[1:]} (got {end:g}); give another"
                ) from None

    @property
    def knob(self) -> Knob:
        """That which `search` turns. Raises ValueError for one that the method does not have."""
        asked = self.search.knob if self.search else None
        found = next((k for k in self.knobs if asked in (None, k.name)), None)
        if found is None:
            there = suggestion(asked or "", [k.name for k in self.knobs])
            raise ValueError(f"search.knob: {self.method} has no such knob (got {asked!r}); {there}")
        return found

    def ends(self, steps: int) -> tuple[float, float]:
        """Between which values `search` looks in a run of so many denoising steps."""
        assert self.search is not None
        last = steps - 1 if self.knob.high is None else self.knob.high
        low, high = self.search.low, self.search.high
        return self.knob.low if low is None else low, last if high is None else high

    def turned(self, value: float) -> Self:
        """The same with the searched knob at this value, and no search."""
        return self.model_copy(update={self.knob.name: int(value) if self.knob.whole else value, "search": None})

    def unread(self) -> Mapping[str, str]:
        """Fields that whoever runs the cache does not read, and why: what is searched or measured is told them otherwise."""
        return {self.knob.name: "cache.search looks for it"} if self.search else {}

    def notes(self, size: int, steps: int) -> list[str]:
        """What is to be said of them in the plan of a run of so many prompts and denoising steps."""
        if self.search is None:
            return []
        (low, high), many = self.ends(steps), min(self.search.prompts or size, size)
        return [
            f"cache.{self.knob.name} is searched from {low:g} to {high:g} under the floor {floors_text(self.search.floor)}: "
            f"at most {self.search.evaluations} values, each drawing {many} prompt{'s' * (many != 1)}"
        ]

    def filled(self, family: Family) -> Self:
        """With the family's own values where none were given; so one left out and one spelled out are the same."""
        return self

    def unfit(self, family: Family) -> str | None:
        """What is wrong with them for a family's blocks, as `FIELD: ... (got X); ...`; else None."""
        return None

    def misfit(self, family: Family, steps: int) -> str | None:
        """The same for a run of so many denoising steps."""
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
