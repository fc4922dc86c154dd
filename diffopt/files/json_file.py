"""Between a JSON file and a dataclass: what each field's type makes of what is read, and what is written of it."""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, TypeVar, Union, cast, get_args, get_origin, get_type_hints

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
        """Of an artifact's directory. Raises StoreError for a file that is none of these."""
        try:
            return cls.of(loaded((folder / cls.NAME).read_text(encoding="utf-8")))
        except ValueError as e:  # no text, or no JSON
            raise StoreError(f"{cls.NAME}: cannot be read ({e}) (got {str(folder)!r}); make what it belongs to again") from None

    @classmethod
    def of(cls, content: Any) -> Self:
        """Of the parsed file."""
        try:
            return typed(cls, content)
        except LackingKey as e:
            raise StoreError(f"{cls.NAME}: lacks a key (got no {e}); make what it belongs to again") from None
        except WrongValue as e:
            what, _, got = str(e).rpartition(" (got ")
            raise StoreError(f"{cls.NAME}: {what} (got {got}; make what it belongs to again") from None

    def to_json(self) -> str:
        head = {"schema": self.SCHEMA} if self.SCHEMA else {}
        return json.dumps(head | plain(self), indent=self.INDENT, ensure_ascii=self.ASCII)

    def write(self, folder: Path) -> None:
        (folder / self.NAME).write_text(self.to_json(), encoding="utf-8")


class LackingKey(ValueError):
    """A field that has no default and is not there."""


class WrongValue(ValueError):
    """A value that is not of its field's type, by the keys that lead to it."""


def loaded(text: str | bytes) -> Any:
    """What JSON says. Raises ValueError for what is none, and for what is nested deeper than Python goes."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deep") from None


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


Reader = Callable[[Any], Any]
LEAVES: dict[Any, tuple[type, ...]] = {str: (str,), bool: (bool,), int: (int,), float: (float, int), NoneType: (NoneType,)}
"""What JSON has for each plain type; True is no number."""
NAMES = {str: "text", bool: "true or false", int: "whole number", float: "number", NoneType: "null"}


@cache
def _reader(kind: Hashable) -> Reader:
    """Raises WrongValue for what is not of the kind, and LackingKey."""
    if is_dataclass(kind):
        return _of_fields(cast(type, kind))
    if kind in LEAVES:
        return _leaf(LEAVES[kind], NAMES[cast(type, kind)])
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _literal(inner)
    if origin in (Union, UnionType):
        return _union([_reader(k) for k in inner])
    if origin is tuple and inner[-1] is not Ellipsis:
        return _fixed([_reader(k) for k in inner])
    if origin in (tuple, list, Sequence):
        return _many(_reader(inner[0]), tuple if origin is tuple else list)
    if origin in (dict, Mapping):
        return _by_name(_reader(inner[1]))
    return _same


def _same(value: Any) -> Any:
    return value


def _leaf(types: tuple[type, ...], name: str) -> Reader:
    def read(value: Any) -> Any:
        if type(value) not in types:
            raise WrongValue(f"is no {name} (got {_short(value)})")
        return value

    return read


def _literal(known: tuple[Any, ...]) -> Reader:
    def read(value: Any) -> Any:
        if not any(value == x and type(value) is type(x) for x in known):
            raise WrongValue(f"is none of {', '.join(map(str, known))} (got {_short(value)})")
        return value

    return read


def _union(readers: list[Reader]) -> Reader:
    def read(value: Any) -> Any:
        wrong: list[ValueError] = []
        for one in readers:
            try:
                return one(value)
            except (WrongValue, LackingKey) as e:
                wrong.append(e)
        raise max(wrong, key=lambda e: str(e).count(": "))  # the one that came furthest

    return read


def _fixed(readers: list[Reader]) -> Reader:
    def read(value: Any) -> Any:
        if type(value) is not list or len(value) != len(readers):
            raise WrongValue(f"is no list of {len(readers)} (got {_short(value)})")
        return tuple(_within(i, one, x) for i, (one, x) in enumerate(zip(readers, value, strict=True)))

    return read


def _many(one: Reader, made: type) -> Reader:
    def read(value: Any) -> Any:
        if type(value) is not list:
            raise WrongValue(f"is no list (got {_short(value)})")
        return made(value) if one is _same else made(_within(i, one, x) for i, x in enumerate(value))

    return read


def _by_name(one: Reader) -> Reader:
    def read(value: Any) -> Any:
        _object(value)
        return value if one is _same else {k: _within(k, one, x) for k, x in value.items()}

    return read


def _object(value: Any) -> None:
    if type(value) is not dict:
        raise WrongValue(f"is no object (got {_short(value)})")


def _within(key: object, one: Reader, value: Any) -> Any:
    try:
        return one(value)
    except WrongValue as e:
        raise WrongValue(f"{key}: {e}" if str(e).startswith("is ") else f"{key}.{e}") from None


def _short(value: Any) -> str:
    return ascii(value)[:40]


def _of_fields(kind: type) -> Reader:
    types = get_type_hints(kind)
    known = [(f.name, _reader(types[f.name]), f.default is MISSING and f.default_factory is MISSING) for f in fields(kind)]

    def read(value: Any) -> Any:
        _object(value)
        given = {}
        for name, one, needed in known:
            if name in value:
                given[name] = _within(name, one, value[name])
            elif needed:
                raise LackingKey(repr(name))
        return kind(**given)

    return read
