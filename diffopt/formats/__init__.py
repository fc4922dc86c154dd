"""Number formats: one small file each, with the rules that modelopt takes. Importing them does not import torch."""

from importlib import import_module

from diffopt.formats.method import Method


def method(name: str) -> Method:
    """The format called `name`, as in conf/format."""
    found = import_module(f"diffopt.formats.{name}").METHOD
    assert isinstance(found, Method)
    return found


__all__ = ["Method", "method"]
