"""cache-dit's dual block cache: the first blocks tell how much changed, the middle ones are left out where it is little.

The package cache-dit (https://github.com/vipshop/cache-dit), an extra. It knows more transformers than diffusers' hooks.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from diffopt.caches.knob import Knob
from diffopt.caches.method import Method, Settings
from diffopt.models import Family

if TYPE_CHECKING:
    from diffopt.caches.target import Attached, Target


class CacheDit(Settings):
    knobs: ClassVar = (
        Knob("threshold", 0.02, 1.0, "higher", usual=0.08),
        Knob("start", 1, None, "lower", usual=8, whole=True),
    )

    method: Literal["cache_dit"]
    threshold: float = Field(gt=0, lt=10)
    """Relative change of the first blocks' residual below which the middle blocks are not computed."""
    first: int = Field(ge=1)
    """Blocks at the beginning that are always computed."""
    last: int = Field(ge=0)
    """Blocks at the end that are always computed."""
    start: int = Field(ge=1)
    """Steps at the beginning that are all computed."""
    most: int | None = Field(default=None, ge=1)
    """Steps left out in a row, at most; null sets no limit."""

    def misfit(self, family: Family, steps: int) -> str | None:
        if self.start >= steps:
            return f"start: the run's steps are 0 to {steps - 1} (got {self.start}); lower it, or raise eval.steps"
        return None


def supports(family: Family) -> str | None:
    return f"cache-dit caches transformers, and {family.name} has a UNet" if "down_blocks" in family.blocks else None


def attach(target: "Target", settings: Any) -> "Attached":
    from cache_dit import DBCacheConfig

    from diffopt.caches.dual_block import DualBlockCache

    config = DBCacheConfig(
        Fn_compute_blocks=settings.first,
        Bn_compute_blocks=settings.last,
        residual_diff_threshold=settings.threshold,
        max_warmup_steps=settings.start,
        max_continuous_cached_steps=-1 if settings.most is None else settings.most,
    )
    return DualBlockCache(target, config)


METHOD = Method(
    "cache_dit",
    CacheDit,
    attach,
    knob=("threshold", "raise it"),
    supports=supports,
    package=("cache-dit", "pip install 'diffopt[cache-dit]'"),
)
