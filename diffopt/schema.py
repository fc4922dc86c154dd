"""What checks a user's choices: the schema of a config group."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


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


def parts(annotation: Any) -> list[type[BaseModel]]:
    """The schemas that a field's value can have."""
    options = [annotation, *(y for x in get_args(annotation) for y in (x, *get_args(x)))]
    return [x for x in options if isinstance(x, type) and issubclass(x, BaseModel)]


def has(schema: type[BaseModel], path: Sequence[str]) -> bool:
    """Whether a schema has a field, or one within a field: `budget`, `bits`. A field that is a mapping has any."""
    name, *within = path
    if name not in schema.model_fields:
        return False
    annotation = schema.model_fields[name].annotation
    if within and get_origin(annotation) is list and within[0].isdecimal():
        within = within[1:]
    return not within or get_origin(annotation) is dict or any(has(x, within) for x in parts(annotation))
