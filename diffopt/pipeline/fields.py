"""Fields of a config of diffusers that are of another type than their class takes, by the class's own signature."""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

WORDS = {
    "number": ("int", "float", "bool"),
    "text": ("str",),
    "list": ("List", "Tuple", "list", "tuple", "Sequence", "ndarray"),
    "object": ("Dict", "dict"),
    "null": ("None", "Optional"),
}
"""In an annotation, by what JSON has."""


def mistyped(cls: Any, config: Mapping[str, Any]) -> str | None:
    """`FIELD is VALUE, and CLASS takes ...` of the first such field; None where there is none. A field of which neither a
    default nor an annotation tells can be anything."""
    for name, parameter in signature(cls.__init__).parameters.items():
        if name not in config or not (taken := _taken(parameter)) - {"null"}:
            continue
        value = config[name]
        found = _kind(value)
        if found in taken and found == "list" == _kind(parameter.default):
            inner = {_kind(x) for x in parameter.default} | {"list", "null"}
            if len(inner) > 2 and (odd := [x for x in value if _kind(x) not in inner]):
                return f"{name} has {odd[0]!r} in it, and {cls.__name__} takes {' or '.join(sorted(inner - {'list', 'null'}))}s"
        if found not in taken:
            return f"{name} is {value!r}, and {cls.__name__} takes {' or '.join(sorted(taken))}"
    return None


def _taken(parameter: Parameter) -> set[str]:
    said, default = str(parameter.annotation), parameter.default
    own = {_kind(default)} if default is not Parameter.empty else set()
    if isinstance(default, bool):  # null is written for what is off, as `upcast_attention` of SDXL's UNet has it
        own.add("null")
    return own | {kind for kind, words in WORDS.items() if any(w in said for w in words)}


def _kind(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return "number"
    if isinstance(value, list | tuple):
        return "list"
    if isinstance(value, Mapping):
        return "object"
    return "null" if value is None else "text"
