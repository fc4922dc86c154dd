"""FasterCache: at some steps the output of attention is drawn on from the two steps before, over the later timesteps.

diffusers' hook, after Lv et al. 2024 (https://arxiv.org/abs/2410.19355). Its other half, which leaves out the unconditional
prediction, works on pictures and videos of rows and columns; the backbones here take tokens, so it is not offered.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from diffopt.caches.knob import Knob
from diffopt.caches.method import Method, Settings, Span, known_to_diffusers
from diffopt.caches.pass_states import state_per_pass

if TYPE_CHECKING:
    from diffopt.caches.loop import Loop
    from diffopt.caches.target import Attached, Target


class FasterCache(Settings):
    knobs: ClassVar = (Knob("every", 2, 8, "higher", usual=2, whole=True),)

    method: Literal["faster_cache"]
    every: int = Field(ge=2)
    """Attention is computed at every so many steps."""
    timesteps: Span
    """Between which, as the scheduler counts from 1000 down to 0, it is not at the others."""
    weight: float = Field(ge=0, le=2)
    """How far the last change is drawn on: 0 uses the last output again, 1 the whole change."""


def attach(target: "Target", settings: Any) -> "Attached":
    from diffusers import FasterCacheConfig
    from diffusers.hooks.faster_cache import FasterCacheBlockState

    from diffopt.caches.hooked import HookedCache

    def configure(loop: "Loop", _: str) -> Any:
        attention = tuple(f"{name}.*attn" for name in target.family.blocks)
        return FasterCacheConfig(
            spatial_attention_block_skip_range=settings.every,
            spatial_attention_timestep_skip_range=settings.timesteps,
            spatial_attention_block_identifiers=attention,
            attention_weight_callback=lambda _: settings.weight,
            is_guidance_distilled=True,  # leaves the unconditional rows as they are
            current_timestep_callback=lambda: loop.timestep,
        )

    def fresh() -> Any:
        state = FasterCacheBlockState()
        state.iteration = settings.every  # the first call is computed, whatever its timestep
        return state

    return HookedCache(target, configure, state_per_pass(fresh))


METHOD = Method("faster_cache", FasterCache, attach, knob=("timesteps", "widen it"), supports=known_to_diffusers("FasterCache"))
