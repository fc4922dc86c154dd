"""Views: the part of a config group that one stage reads."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from diffopt.groups.choices import Choices
from diffopt.schema import Group


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
        for name in sorted(cls.fields_read()):
            if name not in of.model_fields:
                raise TypeError(f"{cls.__qualname__}: {of.__name__} has no field {name!r}")
        if cls.split.__func__ is View.split.__func__:  # type: ignore[attr-defined]
            for name, field in cls.model_fields.items():
                if field.annotation != (theirs := of.model_fields[name].annotation):
                    raise TypeError(f"{cls.__qualname__}.{name}: {field.annotation}, but {of.__name__} has {theirs}")

    @classmethod
    def fields_read(cls) -> frozenset[str]:
        """Names of the group's fields that this view is made of."""
        return frozenset(cls.model_fields)

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        """Those of `fields_read` that have an effect under these choices (alpha has none under FP8)."""
        return cls.fields_read()

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        """The views of `group`: one, or one for each step that the stage is to be split into."""
        return [cls(**{name: getattr(group, name) for name in cls.model_fields})]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        """What enters the fingerprint: every field but those of the group that have no effect."""
        idle = self.fields_read() - used
        dumped: Mapping[str, Any] = self.model_dump(mode="json")
        return {name: value for name, value in dumped.items() if name not in idle}
