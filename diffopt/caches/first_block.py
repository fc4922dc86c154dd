"""FirstBlockCache: where the first block's residual hardly changed, what the others added is used again.

diffusers' hook, after ParaAttention (https://github.com/chengzeyi/ParaAttention) and TeaCache (Liu et al. 2024).
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from diffopt.caches.knob import Knob
from diffopt.caches.method import Method, Settings, known_to_diffusers

if TYPE_CHECKING:
    from diffopt.caches.target import Attached, Target


class FirstBlock(Settings):
    knobs: ClassVar = (Knob("threshold", 0.02, 1.0, "higher", usual=0.1),)

    method: Literal["first_block"]
    threshold: float = Field(gt=0, lt=10)
    """Relative change of the first block's residual below which the other blocks are not computed."""


def attach(target: "Target", settings: Any) -> "Attached":
    from diffusers import FirstBlockCacheConfig

    from diffopt.caches.hooked import HookedCache

    return HookedCache(target, lambda *_: FirstBlockCacheConfig(threshold=settings.threshold))


METHOD = Method(
    "first_block", FirstBlock, attach, knob=("threshold", "raise it"), supports=known_to_diffusers("FirstBlockCache")
)
