"""Number formats: one small file each, with the rules that modelopt takes. Importing them does not import torch."""

from importlib import import_module
from typing import Any

from diffopt.formats.method import Method


def method(name: str) -> Method:
    """The format called `name`, as in conf/format."""
    found = import_module(f"diffopt.formats.{name}").METHOD
    assert isinstance(found, Method)
    return found


def methods(chosen: Any) -> list[Method]:
    """Those that a validated `format=` may put on a layer: the candidates of `auto`, else the one that was chosen."""
    names = chosen.candidates if chosen.name == "auto" else [chosen.name]
    return [method(n) for n in names if n != "full"]


__all__ = ["Method", "method", "methods"]
