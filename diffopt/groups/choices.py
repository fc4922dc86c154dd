"""The validated options of one run, a group each."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from diffopt.schema import Group

if TYPE_CHECKING:
    from diffopt.groups import Calib, Eval, Export, Format, Model, Sense, Train


@dataclass(frozen=True)
class Choices:
    """One validated option per config group, or None where none was chosen."""

    seed: int
    model: "Model | None" = None
    format: "Format | None" = None
    calib: "Calib | None" = None
    sense: "Sense | None" = None
    cache: Group | None = None
    train: "Train | None" = None
    export: "Export | None" = None
    eval: "Eval | None" = None
    others: Mapping[str, Group | None] = field(default_factory=dict)
    """Of groups of other packages, by name."""
    compared: str = ""
    """The name in `eval.compare` of a further candidate, whose choices these are; empty for the main one."""
    main: "Choices | None" = None
    """Of a further candidate, the main one's choices."""

    def of(self, group: str) -> Group | None:
        """The option of a group."""
        found: Group | None = self.others[group] if group in self.others else getattr(self, group, None)
        return found

    def baseline(self) -> "Choices":
        """The same work in full precision: nothing that changes the model or its arithmetic."""
        plain = replace(self, format=None, calib=None, sense=None, cache=None, train=None, compared="", main=None)
        return replace(plain, others=dict.fromkeys(self.others))
