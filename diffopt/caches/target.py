"""What a cache is attached to: a pipeline, its backbones, and the blocks of them that can be reused."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from diffopt import models
from diffopt.caches.policy import MIDDLE, block_names
from diffopt.caches.statistics import Statistics
from diffopt.models import Family


@dataclass(frozen=True)
class Target:
    pipe: Any
    """A diffusers pipeline: its scheduler tells where a run is."""
    family: Family
    backbones: dict[str, Any]
    """By the pipeline's attribute."""

    def blocks(self, backbone: Any) -> dict[str, Any]:
        """Its blocks by name, in the order in which it calls them."""
        lists = {name: getattr(backbone, name) for name in self.family.blocks}
        names = block_names({n: len(x) for n, x in lists.items()}, getattr(backbone, MIDDLE, None) is not None)
        return {name: backbone.get_submodule(name) for name in names}


def target_of(pipe: Any) -> Target:
    """Of a pipeline that diffopt did not open. Raises ValueError for one whose family it does not know."""
    there = [models.family(name) for name in models.names()]
    kind = type(pipe).__name__
    exact = [f for f in there if kind in (f.pipeline, *f.aliases)]
    alike = [f for f in there if type(getattr(pipe, f.backbones[0], None)).__name__ == f.backbone_class]  # image to image
    for family in [*exact, *alike]:
        return Target(pipe, family, {n: b for n in family.backbones if (b := getattr(pipe, n, None)) is not None})
    raise ValueError(
        f"pipe: its blocks are not known (got a {kind}); there are {', '.join(f.pipeline for f in there)} and what has their "
        "backbones"
    )


OWNER = "_diffopt_cache"
"""Attribute of a backbone that has a cache attached."""


def claim(backbones: Mapping[str, Any], owner: object) -> None:
    """Raises ValueError where one has a cache: two would count and answer each other's calls."""
    for name, backbone in backbones.items():
        if backbone.__dict__.get(OWNER) is not None or getattr(backbone, "is_cache_enabled", False):
            raise ValueError(f"{name}: has a cache already (got another); detach that first")
    for backbone in backbones.values():
        backbone.__dict__[OWNER] = owner


def release(backbones: Mapping[str, Any]) -> None:
    for backbone in backbones.values():
        backbone.__dict__.pop(OWNER, None)


class Attached(Protocol):
    """A cache on a pipeline. It does nothing until it is enabled, and nothing again when it is disabled."""

    def reset(self) -> None:
        """Forget what was computed: nothing of one run is reused in the next."""

    def enable(self) -> None: ...

    def disable(self) -> None: ...

    def detach(self) -> None:
        """Leave the pipeline as it was."""

    def statistics(self) -> Statistics:
        """Of everything since it was attached."""


@contextmanager
def session(cache: Attached) -> Iterator[Attached]:
    """Within it the cache works, from nothing; whatever happens it is off and empty afterwards."""
    cache.reset()
    try:
        cache.enable()
        yield cache
    finally:
        cache.disable()
        cache.reset()
