"""Pyramid Attention Broadcast: the output of attention is used again for some steps, over the middle of the timesteps.

diffusers' hook, after Zhao et al. 2024 (https://arxiv.org/abs/2408.12588), made for transformers of videos. Attention to the
text changes least from step to step, so it may be used again for longest.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from diffopt.caches.knob import Knob
from diffopt.caches.method import Method, Settings, Span, known_to_diffusers
from diffopt.caches.pass_states import state_per_pass
from diffopt.models import Family

if TYPE_CHECKING:
    from diffopt.caches.loop import Loop
    from diffopt.caches.target import Attached, Target


class PyramidAttention(Settings):
    knobs: ClassVar = (Knob("spatial", 2, 8, "higher", usual=2, whole=True), Knob("cross", 2, 8, "higher", whole=True))

    method: Literal["pyramid_attention"]
    spatial: int | None = Field(ge=2)
    """Self-attention is computed at every so many steps; null at all."""
    cross: int | None = Field(ge=2)
    """Attention to the text alone, of models that have it (Wan), likewise."""
    timesteps: Span
    """Between which, as the scheduler counts from 1000 down to 0, both are used again."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.spatial is None and self.cross is None:
            raise ValueError("spatial: nothing is reused, and nothing of cross either (got None); give one of the two")
        return self

    def unfit(self, family: Family) -> str | None:
        if self.cross is not None and not family.cross_attention:
            return f"cross: {family.name} has no attention to the text alone (got {self.cross}); set cache.cross=null"
        return None


def attach(target: "Target", settings: Any) -> "Attached":
    from diffusers import PyramidAttentionBroadcastConfig
    from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastState

    from diffopt.caches.hooked import HookedCache

    def configure(loop: "Loop", _: str) -> Any:
        return PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=settings.spatial,
            spatial_attention_timestep_skip_range=settings.timesteps,
            cross_attention_block_skip_range=settings.cross,
            cross_attention_timestep_skip_range=settings.timesteps,
            current_timestep_callback=lambda: loop.timestep,
        )

    return HookedCache(target, configure, state_per_pass(PyramidAttentionBroadcastState))


METHOD = Method(
    "pyramid_attention",
    PyramidAttention,
    attach,
    knob=("timesteps", "widen it"),
    supports=known_to_diffusers("PyramidAttentionBroadcast"),
)
