"""Model families: one small file each. Importing them does not import torch."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from diffopt.models.family import Family

HELPERS = ("example", "family", "parts", "svd_pipeline", "unet")


@cache
def names() -> list[str]:
    """The families there are."""
    return sorted(m.name for m in iter_modules(__path__) if m.name not in HELPERS)


def family(name: str) -> Family:
    """The family called `name`; one of `names()`."""
    found = import_module(f"diffopt.models.{name}").FAMILY
    assert isinstance(found, Family)
    return found


__all__ = ["Family", "family", "names"]
