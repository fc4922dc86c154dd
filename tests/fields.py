"""The fields of the config groups as the manual's tables have them: by path, with what each takes in words."""

import re
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from diffopt.caches import METHODS, Settings
from diffopt.caches.knob_search import KnobSearch
from diffopt.data.prompts import PromptSet
from diffopt.groups import GROUPS
from diffopt.store.source import Source

WORDS = {str: "text", list: "list", dict: "map", tuple: "pair", PromptSet: "prompts", Source: "source", bool: "true or false"}
NUMBERS = {int: "whole number", float: "number"}


def of_group(name: str) -> dict[str, str]:
    """By path within the group, `budget.bits`, what a field takes."""
    return {path: takes(field) for path, field in _fields(GROUPS[name])}


def of_caches() -> dict[tuple[str, str], str]:
    """By method and field what it takes; `each` method has those of them all."""
    own = {
        (method.name, path): takes(field)
        for method in METHODS.values()
        for path, field in method.settings.model_fields.items()
        if path not in Settings.model_fields
    }
    return {("each", "search"): takes(Settings.model_fields["search"])} | own


def of_search() -> dict[str, str]:
    return {f"search.{path}": takes(field) for path, field in KnobSearch.model_fields.items()}


def paths() -> set[str]:
    """`group.field` of every field of every group, and of every cache method."""
    found = {f"{group}.{path}" for group in GROUPS if group != "cache" for path in of_group(group)}
    return found | {f"cache.{path}" for _, path in of_caches()} | {f"cache.{path}" for path in of_search()} | {"cache.method"}


def _fields(schema: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in schema.model_fields.items():
        yield name, field
        for inner in _options(field.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from ((f"{name}.{path}", x) for path, x in _fields(inner))


def _options(annotation: Any) -> list[Any]:
    """Of a union its members, without notes."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return [x for member in get_args(annotation) for x in _options(member)]
    return _options(get_args(annotation)[0]) if hasattr(annotation, "__metadata__") else [annotation]


def takes(field: FieldInfo) -> str:
    """`whole number from 1, or null`."""
    found = []
    for option in _options(field.annotation):
        kind = get_origin(option) or option
        if kind is Literal:
            found += [f"`{x}`" for x in get_args(option)]
        elif kind in NUMBERS:
            found.append(NUMBERS[kind] + _range(field))
        elif kind is NoneType:
            found.append("null")
        else:
            found.append(WORDS.get(kind, "map"))
    return " or ".join(found)


def _range(field: FieldInfo) -> str:
    """` from 0 to 1`, ` above 0 below 1`; nothing where any number is taken."""
    closed = any(isinstance(m, Ge) for m in field.metadata)
    found = ""
    for limit in field.metadata:
        match limit:
            case Ge(ge=x):
                found += f" from {x}"
            case Gt(gt=x):
                found += f" above {x}"
            case Le(le=x):
                found += f" {'to' if closed else 'up to'} {x}"
            case Lt(lt=x):
                found += f" below {x}"
    return found


def same(told: str, is_so: str) -> bool:
    """Whether a cell says what a field takes, in any order and with any commas."""
    return sorted(_tokens(told)) == sorted(_tokens(is_so))


def _tokens(text: str) -> list[str]:
    return [w for w in re.findall(r"[\w.+-]+", text) if w != "or"]
