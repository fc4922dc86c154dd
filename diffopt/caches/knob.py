"""A number among a cache's fields that decides how much it leaves out, so that a search can turn it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Knob:
    name: str
    """The field."""
    low: float
    high: float | None
    """Between which it is searched unless `cache.search` says otherwise; None is the run's last step."""
    more: Literal["higher", "lower"]
    """Which values leave out more."""
    usual: float | None = None
    """Its value in conf/cache, which is nobody's choice: a search takes its place."""
    whole: bool = False
    """A whole number."""
