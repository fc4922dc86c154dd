"""Groups, the schemas that check a user's choices, and views, the part of a group that one stage reads."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

if TYPE_CHECKING:
    from diffopt.groups import Calib, Eval, Export, Format, Model, Sense, Train


class Group(BaseModel):
    """The schema of one config group: every field, its type, range and unit."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic takes true for 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError("is not a number; give one")
        return value

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False, defer_build=True)

    readers: ClassVar[dict[str, str]] = {}
    """Of fields that not everything reads, what does: why an override of them can be without effect."""

    steers: ClassVar[frozenset[str]] = frozenset()
    """Fields that decide which steps are planned; no stage reads them, so they are in no fingerprint of their own."""

    @classmethod
    def shape(cls, value: Mapping[str, Any]) -> "type[Group]":
        """The schema of these values: the group's own, or where they choose among several the chosen one."""
        return cls

    @classmethod
    def fields(cls) -> Iterable[str]:
        """Names of all fields, of every schema."""
        return cls.model_fields

    @classmethod
    def reader(cls, name: str) -> str | None:
        """What reads a field that not everything reads."""
        return cls.readers.get(name)

    def unread(self) -> Mapping[str, str]:
        """Fields that have no effect beside the others' values, and why."""
        return {}


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
    compared: str = ""
    """The name in `eval.compare` of a further candidate, whose choices these are; empty for the main one."""
    main: "Choices | None" = None
    """Of a further candidate, the main one's choices."""

    def baseline(self) -> "Choices":
        """The same work in full precision: nothing that changes the model or its arithmetic."""
        return replace(self, format=None, calib=None, sense=None, cache=None, train=None, compared="", main=None)


class View(BaseModel):
    """The fields of one group that one stage reads: those, and no others, are in its fingerprint.

    `class Calls(View, of=Model)` declares each field again, with the group's own type; a field that the group does
    not have, or has with another type, is an error when the class is made.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, defer_build=True)

    of: ClassVar[type[Group]]

    def __init_subclass__(cls, of: type[Group] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)  # `of` is for __pydantic_init_subclass__, when the fields are known

    @classmethod
    def __pydantic_init_subclass__(cls, *, of: type[Group] | None = None, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if of is None:
            return
        cls.of = of
        for name in cls.drawn_from():
            if name not in of.model_fields:
                raise TypeError(f"{cls.__qualname__}: {of.__name__} has no field {name!r}")
        if cls.draw.__func__ is View.draw.__func__:  # type: ignore[attr-defined]
            for name, field in cls.model_fields.items():
                if field.annotation != (theirs := of.model_fields[name].annotation):
                    raise TypeError(f"{cls.__qualname__}.{name}: {field.annotation}, but {of.__name__} has {theirs}")

    @classmethod
    def drawn_from(cls) -> frozenset[str]:
        """Names of the group's fields that this view is made of."""
        return frozenset(cls.model_fields)

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        """Those of `drawn_from` that have an effect under these choices (alpha has none under FP8)."""
        return cls.drawn_from()

    @classmethod
    def draw(cls, group: Group, choices: Choices) -> list[Self]:
        """The views of `group`: one, or one for each step that the stage is to be split into."""
        return [cls(**{name: getattr(group, name) for name in cls.model_fields})]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        """What enters the fingerprint: every field but those of the group that have no effect."""
        idle = self.drawn_from() - used
        dumped: Mapping[str, Any] = self.model_dump(mode="json")
        return {name: value for name, value in dumped.items() if name not in idle}
