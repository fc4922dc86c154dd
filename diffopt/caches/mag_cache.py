"""MagCache: steps are left out while the error accumulated from known ratios of residuals' magnitudes stays small.

diffusers' hook, after Ma et al. 2025 (https://arxiv.org/abs/2506.09045). The ratios are a model's own: how large what all
blocks add is at a step beside what it was at the step before. conf/cache/mag_cache_flux.yaml has those of FLUX.1.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from diffopt.caches.method import Method, Settings, known_to_diffusers

if TYPE_CHECKING:
    from diffopt.caches.loop import Loop
    from diffopt.caches.target import Attached, Target


class MagCache(Settings):
    method: Literal["mag_cache"]
    threshold: float = Field(gt=0, lt=10)
    """Of the accumulated error, up to which steps are left out."""
    most: int = Field(ge=1)
    """Steps left out in a row, at most."""
    keep: float = Field(ge=0, lt=1)
    """Share of the steps, from the first, that are all computed."""
    ratios: list[Annotated[float, Field(gt=0)]] = Field(min_length=2)
    """For each step of a run the ratio of magnitudes, 1 for the first; of a run of other length the nearest steps' are used."""


def attach(target: "Target", settings: Any) -> "Attached":
    from diffusers.hooks.mag_cache import MagCacheConfig, MagCacheHeadHook, nearest_interp
    from torch import tensor

    from diffopt.caches.hooked import HookedCache

    def configure(_: "Loop") -> Any:
        return MagCacheConfig(
            threshold=settings.threshold,
            max_skip_steps=settings.most,
            retention_ratio=settings.keep,
            num_inference_steps=len(settings.ratios),
            mag_ratios=settings.ratios,
        )

    def before(loop: "Loop", hooks: list[Any], _: int) -> None:
        """Tell the hooks the run's length and place: they count calls, of which a second backbone has fewer."""
        for hook in hooks:
            config = hook.config
            if loop.passes and config.num_inference_steps != loop.passes:
                config.num_inference_steps = loop.passes
                config.mag_ratios = nearest_interp(tensor(settings.ratios), loop.passes)
            if isinstance(hook, MagCacheHeadHook) and loop.place:
                hook.state_manager.get_state().step_index = loop.index

    return HookedCache(target, configure, before)


METHOD = Method("mag_cache", MagCache, attach, knob=("threshold", "raise it"), supports=known_to_diffusers("MagCache"))
