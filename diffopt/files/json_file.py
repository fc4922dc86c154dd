"""Between a JSON file and a dataclass: what each field's type makes of what is read, and what is written of it."""

import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from diffopt.errors import StoreError

T = TypeVar("T")
LATER = "later"


@dataclass(frozen=True)
class JsonFile:
    """Of a dataclass that is a file: a field is a key. A field with a default is a key that may be absent, and is left out
    where it has that default: files of older versions lack the newer keys. Keys that are no fields are not read."""

    NAME: ClassVar[str]
    SCHEMA: ClassVar[str | None] = None
    """Written first, under `schema`."""
    INDENT: ClassVar[int | None] = 1
    ASCII: ClassVar[bool] = True
    """Else texts are written as they are, in UTF-8."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Of an artifact's directory. Raises StoreError for a file that lacks a key."""
        return cls.of(json.loads((folder / cls.NAME).read_text(encoding="utf-8")))

    @classmethod
    def of(cls, content: Any) -> Self:
        """Of the parsed file."""
        try:
            return typed(cls, content)
        except LackingKey as e:
            raise StoreError(f"{cls.NAME}: lacks a key (got no {e}); make what it belongs to again") from None

    def to_json(self) -> str:
        head = {"schema": self.SCHEMA} if self.SCHEMA else {}
        return json.dumps(head | plain(self), indent=self.INDENT, ensure_ascii=self.ASCII)

    def write(self, folder: Path) -> None:
        (folder / self.NAME).write_text(self.to_json(), encoding="utf-8")


class LackingKey(ValueError):
    """A field that has no default and is not there."""


def later(default: T) -> T:
    """A key that files of older versions lack, which then has this value, and that is always written now."""
    return field(default=default, metadata={LATER: True})


def typed(kind: type[T], value: Any) -> T:
    """`value`, as JSON has it, in the form of `kind`: a dataclass, or tuples, dicts by text, and unions with None of such."""
    return cast(T, _reader(cast(Hashable, kind))(value))


def plain(value: Any) -> Any:
    """As JSON has it. A dict's values and a tuple's are made plain too; numbers and texts stay as they are."""
    if is_dataclass(value):
        pairs = ((f, getattr(value, f.name)) for f in fields(value))
        return {f.name: plain(x) for f, x in pairs if not _is_default(f, x)}
    if isinstance(value, Mapping):
        return {k: plain(x) for k, x in value.items()}
    return [plain(x) for x in value] if isinstance(value, (list, tuple)) else value


def _is_default(of: Field[Any], value: Any) -> bool:
    if of.default is not MISSING:
        return LATER not in of.metadata and bool(value == of.default)
    return of.default_factory is not MISSING and bool(value == of.default_factory())


@cache
def _reader(kind: Hashable) -> Callable[[Any], Any]:
    if is_dataclass(kind):
        return _of_fields(cast(type, kind))
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (one,) = {_reader(k) for k in inner if k is not NoneType}
        return one if one is _same else lambda value: None if value is None else one(value)
    if origin in (tuple, list):
        one = _reader(inner[0])
        if one is _same:
            return tuple if origin is tuple else _same
        return lambda value: origin(map(one, value))
    if origin in (dict, Mapping):
        one = _reader(inner[1])
        return one if one is _same else lambda value: {k: one(x) for k, x in value.items()}
    return _same


def _same(value: Any) -> Any:
    return value


def _of_fields(kind: type) -> Callable[[Any], Any]:
    types = get_type_hints(kind)
    known = [(f.name, _reader(types[f.name]), f.default is MISSING and f.default_factory is MISSING) for f in fields(kind)]

    def read(value: Any) -> Any:
        given = {}
        for name, one, needed in known:
            if name in value:
                given[name] = one(value[name])
            elif needed:
                raise LackingKey(repr(name))
        return kind(**given)

    return read
