"""TaylorSeer: between steps that are computed, the outputs of attention are extrapolated from those before by differences.

diffusers' hook, after Liu et al. 2025 (https://arxiv.org/abs/2503.06923).
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from diffopt.caches.knob import Knob
from diffopt.caches.method import Method, Settings, known_to_diffusers
from diffopt.models import Family

if TYPE_CHECKING:
    from diffopt.caches.target import Attached, Target


class TaylorSeer(Settings):
    knobs: ClassVar = (
        Knob("start", 1, None, "lower", usual=3, whole=True),
        Knob("every", 2, 8, "higher", usual=5, whole=True),
    )

    method: Literal["taylor_seer"]
    every: int = Field(ge=2)
    """Computed at every so many steps."""
    start: int = Field(ge=1)
    """Steps at the beginning that are all computed."""
    stop: int | None = Field(default=None, ge=1)
    """The step from which on all are computed; null is the end."""
    order: int = Field(ge=1, le=4)
    """Of the highest difference that is used."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop: is not after start={self.start} (got {self.stop}); raise it")
        return self

    def misfit(self, family: Family, steps: int) -> str | None:
        for name in ("start", "stop"):
            if (value := getattr(self, name)) is not None and value > steps - (name == "start"):
                return f"{name}: the run's steps are 0 to {steps - 1} (got {value}); lower it, or raise eval.steps"
        return None


def attach(target: "Target", settings: Any) -> "Attached":
    from diffusers import TaylorSeerCacheConfig

    from diffopt.caches.hooked import HookedCache

    dtype = next(iter(target.backbones.values())).dtype
    return HookedCache(
        target,
        lambda *_: TaylorSeerCacheConfig(
            cache_interval=settings.every,
            disable_cache_before_step=settings.start,
            disable_cache_after_step=settings.stop,
            max_order=settings.order,
            taylor_factors_dtype=dtype,
            cache_identifiers=[rf"{name}\.\d+\.attn\d?" for name in target.family.blocks],  # its own miss `attn1`
        ),
    )


METHOD = Method("taylor_seer", TaylorSeer, attach, knob=("start", "lower it"), supports=known_to_diffusers("TaylorSeer"))
