"""Model families: one small file each, and those of other packages. Importing them does not import torch."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from diffopt.errors import PlanError
from diffopt.files.found import Found
from diffopt.models.family import Family
from diffopt.models.found import AUTO, family_of
from diffopt.models.index import index_of
from diffopt.registry import Registry

OURS = (
    "chroma",
    "cosmos25",
    "flux",
    "flux2",
    "flux2_klein",
    "flux_fill",
    "flux_kontext",
    "hunyuan_video15",
    "ltx",
    "ltx2",
    "pixart",
    "qwen_image",
    "qwen_image_edit",
    "sana",
    "sana_sprint",
    "sd21",
    "sd3",
    "sdxl",
    "sdxl_controlnet",
    "svd",
    "wan",
    "wan_i2v",
    "z_image",
)

FAMILIES: Registry[Family] = Registry("diffopt.models", "FAMILY", Family, OURS, PlanError, "model.family={}")


class Described(Protocol):
    """What says its family: the group `model`, a view of it, a Pipeline's file."""

    @property
    def family(self) -> str: ...

    @property
    def found(self) -> Found | None: ...


def names() -> list[str]:
    """The families there are."""
    return sorted(FAMILIES)


def family(name: str) -> Family:
    """The family called `name`; one of `names()`."""
    return FAMILIES[name]


def of(described: Described) -> Family:
    """Its family: one of `names()`, or with `auto` the one that was found, or that which stands for it until then."""
    if described.family != AUTO.name:
        return family(described.family)
    if described.found:
        return family_of(described.found)
    origin = getattr(described, "origin", None)  # of the group alone
    return unknown(origin.directory if origin else None)


def unknown(directory: Path | None) -> Family:
    """AUTO, with what the index of the pipeline's directory tells, where it is here."""
    if directory is not None:
        with suppress(ValueError):  # which the group says
            found = index_of(directory)
            return replace(AUTO, pipeline=found.pipeline, backbones=found.backbones)
    return AUTO


__all__ = ["AUTO", "FAMILIES", "Family", "Found", "family", "names", "of", "unknown"]
