"""What of `cache=` decides where a graph is cut: the reused blocks, and not the steps."""

from typing import Self

from diffopt import models
from diffopt.caches.cachify import Cachify, policy
from diffopt.caches.policy import Policy, Reuse, Scope
from diffopt.groups.cache import Cache
from diffopt.groups.choices import Choices
from diffopt.groups.view import View
from diffopt.schema import Group


class CutView(View, of=Cache):
    """A sweep over the steps shares the graphs and their plans."""

    blocks: tuple[str, ...]
    part: Scope
    reuse: Reuse

    @property
    def policy(self) -> Policy:
        """Which blocks are reused; at which steps is left open."""
        return Policy(blocks=self.blocks, part=self.part, reuse=self.reuse)

    @classmethod
    def fields_read(cls) -> frozenset[str]:
        return frozenset({"method"})

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        return frozenset({"method", *cls.model_fields})

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Cachify)
        assert choices.model is not None
        found = policy(group.filled(models.of(choices.model)))
        return [cls(blocks=found.blocks, part=found.part, reuse=found.reuse)]


def cuts(choices: Choices) -> bool:
    """Whether a graph is cut for the cache. Other methods decide while they run which blocks they skip."""
    return isinstance(choices.cache, Cachify)
