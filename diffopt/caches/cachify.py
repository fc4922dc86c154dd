"""Block caching with a fixed policy: globs over block names, and the steps at which what the blocks gave is used again.

Model-Optimizer's cache diffusion (examples/diffusers/cache_diffusion), by the same name. DeepCache (Ma et al. 2023,
https://arxiv.org/abs/2312.00858) is a policy of it for UNets, and so is the gate of T-GATE (Zhang et al. 2024,
https://arxiv.org/abs/2404.02747), which stops computing cross-attention at a step: conf/cache/deepcache.yaml, tgate.yaml.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from diffopt.caches.knob import Knob
from diffopt.caches.method import Method, Settings
from diffopt.caches.policy import MIDDLE, Policy, Reuse, Scope, check_pattern, stem
from diffopt.errors import suggestion
from diffopt.models import AUTO, Family

if TYPE_CHECKING:
    from diffopt.caches.target import Attached, Target


UNETS = ("down_blocks", MIDDLE, "up_blocks")


def _pattern(text: str) -> str:
    check_pattern(text)
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]


class Cachify(Settings):
    knobs: ClassVar = (Knob("every", 2, 8, "higher", whole=True), Knob("start", 1, None, "lower", whole=True))

    method: Literal["cachify"]
    blocks: list[Pattern] | None = Field(default=None, min_length=1)
    """Globs over block names (`up_blocks.0`, or `up_blocks.-1` from the end), regular expressions after `re:`, and `!` before
    those left out again; null takes the family's own."""
    every: int | None = Field(default=None, ge=2)
    """Blocks are computed at every so many steps. Null, with nothing said of steps, takes the family's own."""
    start: int | None = Field(default=None, ge=1)
    """The first step, from 0, at which they may be reused; without `every` they are from there on."""
    stop: int | None = Field(default=None, ge=2)
    """The first step at which they are not reused any more."""
    steps: list[Annotated[int, Field(ge=1)]] | None = Field(default=None, min_length=1)
    """Exactly the steps at which they are reused, instead of `every`, `start` and `stop`."""
    part: Scope = "block"
    """What is reused of these blocks: all, or their `self_attention` or `cross_attention` alone."""
    reuse: Reuse | None = None
    """A block's `output`, or the `residual` that it added to what it was given; null takes the family's own."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.steps is not None:
            for name in ("every", "start", "stop"):
                if (value := getattr(self, name)) is not None:
                    raise ValueError(f"{name}: says otherwise than steps={self.steps} (got {value}); drop one of the two")
            if sorted({*self.steps}) != self.steps:
                raise ValueError(f"steps: are not in order, each once (got {self.steps}); sort them")
        if self.stop is not None and self.start is not None and self.stop <= self.start:
            raise ValueError(f"stop: is not after start={self.start} (got {self.stop}); raise it")
        if self.stop is not None and self.start is None and self.every is None:
            raise ValueError(f"stop: needs where it begins (got {self.stop}); give cache.start or cache.every too")
        if self.part != "block" and self.reuse == "residual":
            raise ValueError(f"reuse: attention is reused by its output (got residual with part={self.part}); drop it")
        return self

    def filled(self, family: Family) -> Self:
        if family.name == AUTO.name:  # filled when it is attached
            return self
        said = any(value is not None for value in (self.every, self.start, self.steps))
        own = family.cached if self.part == "block" else ("*",)
        reuse = self.reuse or (family.cached_reuse if self.part == "block" else "output")
        changes = {
            "blocks": [*own] if self.blocks is None else self.blocks,
            "every": self.every if said else family.cached_every,
            "reuse": reuse,
        }
        return self.model_copy(update=changes)

    def unfit(self, family: Family) -> str | None:
        if family.name == AUTO.name:
            return None
        unet = "down_blocks" in family.blocks
        own = f"choose cache=cachify, which takes {family.name}'s own"
        there = (*family.blocks, MIDDLE) if unet else family.blocks
        for pattern in self.blocks or ():
            named = stem(pattern)
            if named is None or named in there:
                continue
            if named in UNETS:
                unets = f"{family.name} has no {named}, which UNets have and cache=deepcache names"
                return f"blocks: {unets} (got {pattern!r}); {own}"
            return f"blocks: matches no block (got {pattern!r}); {suggestion(named, there)}"
        if self.part == "cross_attention" and not family.cross_attention:
            return (
                f"part: {family.name} has no attention to the text alone, which cache=tgate reuses (got {self.part}); "
                f"choose cache=cachify with cache.part=block, or drop the cache"
            )
        if self.reuse == "residual" and unet:
            return f"reuse: the blocks of {family.name} give other shapes than they take (got residual); set cache.reuse=output"
        return None

    def misfit(self, family: Family, steps: int) -> str | None:
        if self.blocks is None and self.part == "block" and not family.cached:
            return f"blocks: are not set, and {family.name} has none of its own (got None); name them, e.g. '*_blocks.1'"
        return policy(self.filled(family)).misfit(steps)

    def mismatch(self, names: Sequence[str]) -> str | None:
        try:
            policy(self).reused(names)
        except ValueError as e:
            return f"blocks: {e}"
        return None


def policy(settings: Cachify) -> Policy:
    """Of filled settings."""
    return Policy(
        blocks=tuple(settings.blocks or ()),
        every=settings.every,
        start=settings.start or 0,
        stop=settings.stop,
        steps=tuple(settings.steps) if settings.steps is not None else None,
        part=settings.part,
        reuse=settings.reuse or "output",
    )


def attach(target: "Target", settings: Any) -> "Attached":
    from diffopt.caches.blocks import BlockCache

    found = policy(settings.filled(target.family))
    return BlockCache(target, lambda names: dict.fromkeys(found.reused(names), found.reuses), found.part, found.reuse)


METHOD = Method("cachify", Cachify, attach, knob=("blocks", "reuse more, or at more steps"))
