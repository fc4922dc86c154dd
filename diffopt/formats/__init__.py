"""Number formats: one small file each, with the rules that modelopt takes, and those of other packages. Importing them does not
import torch."""

from typing import Any

from diffopt.errors import ConfigError
from diffopt.formats.method import Method
from diffopt.registry import Registry

OURS = ("int8", "int8_sq", "fp8", "int4_awq", "w4a8_awq", "nvfp4", "nvfp4_svdquant", "mxfp8", "auto")

METHODS: Registry[Method] = Registry("diffopt.formats", "METHOD", Method, OURS, ConfigError, "format.name={}")


def method(name: str) -> Method:
    """The format called `name`, as in conf/format."""
    return METHODS[name]


def methods(chosen: Any) -> list[Method]:
    """Those that a validated `format=` may put on a layer: the candidates of `auto`, else the one that was chosen."""
    names = chosen.candidates if chosen.name == "auto" else [chosen.name]
    return [method(n) for n in names if n != "full"]


__all__ = ["METHODS", "OURS", "Method", "method", "methods"]
