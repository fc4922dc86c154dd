"""MagCache: steps are left out while the error accumulated from known ratios of residuals' magnitudes stays small.

diffusers' hook, after Ma et al. 2025 (https://arxiv.org/abs/2506.09045). The ratios are a model's own: how large what all
blocks add is at a step beside what it was at the step before. Where none are given the stage `ratios` measures them;
conf/cache/mag_cache_flux.yaml has those of FLUX.1 as published.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from diffopt.caches.knob import Knob
from diffopt.caches.method import Method, Settings, known_to_diffusers

if TYPE_CHECKING:
    from diffopt.caches.loop import Loop
    from diffopt.caches.target import Attached, Target

Ratios = list[Annotated[float, Field(gt=0)]]
Table = dict[str, dict[str, Ratios]]
"""By the backbone's name, and by the name that diffusers has for a call within a step (`cond`, `uncond`)."""


class MagCache(Settings):
    knobs: ClassVar = (Knob("threshold", 0.01, 1.0, "higher", usual=0.06), Knob("most", 1, 8, "higher", usual=3, whole=True))

    method: Literal["mag_cache"]
    threshold: float = Field(gt=0, lt=10)
    """Of the accumulated error, up to which steps are left out."""
    most: int = Field(ge=1)
    """Steps left out in a row, at most."""
    keep: float = Field(ge=0, lt=1)
    """Share of the steps, from the first, that are all computed."""
    ratios: Ratios | None = Field(default=None, min_length=2)
    """For each step of a run the ratio of magnitudes, 1 for the first; of a run of other length the nearest steps' are used.
    Null measures them, on the full-precision model in the evaluation's steps."""
    prompts: int = Field(default=4, ge=1)
    """On which they are measured: the first of the evaluation's, at most all of them."""

    def unread(self) -> Mapping[str, str]:
        return {**super().unread(), "prompts": "cache.ratios are given"}

    def notes(self, size: int, steps: int) -> list[str]:
        many = min(self.prompts, size)
        about = f"the ratios of magnitudes are measured on {many} prompt{'s' * (many != 1)}, for every cache.threshold once"
        return [*super().notes(size, steps), *([about] if self.ratios is None else [])]


class Measured(MagCache):
    """The same with ratios that were measured."""

    table: Table


def with_ratios(settings: MagCache, table: Table) -> Measured:
    """The same settings, the ratios those of the stage `ratios`."""
    return Measured.model_construct(**dict(settings), table=table)


def attach(target: "Target", settings: Any) -> "Attached":
    from diffusers.hooks.mag_cache import MagCacheConfig, MagCacheHeadHook, nearest_interp
    from torch import tensor

    from diffopt.caches.hooked import HookedCache

    tables: dict[int, dict[str, Any]] = {}
    """By the config of a backbone's hooks the ratios of each of its calls within a step; of every call under an empty name."""

    def configure(_: "Loop", backbone: str) -> Any:
        table = settings.table[backbone] if isinstance(settings, Measured) else {"": settings.ratios}
        ratios = next(iter(table.values()))
        config = MagCacheConfig(
            threshold=settings.threshold,
            max_skip_steps=settings.most,
            retention_ratio=settings.keep,
            num_inference_steps=len(ratios),
            mag_ratios=ratios,
        )
        tables[id(config)] = {name: tensor(x) for name, x in table.items()}
        return config

    def before(loop: "Loop", hooks: list[Any], _: int) -> None:
        """Tell the hooks the run's length and place: they count calls, of which a second backbone has fewer.

        And the ratios of the call: of a step's several each has its own.
        """
        for hook in hooks:
            config = hook.config
            table = tables[id(config)]
            ratios = table[""] if "" in table else table[hook.state_manager.context.name]
            if loop.passes:
                config.num_inference_steps = loop.passes
                config.mag_ratios = ratios if len(ratios) == loop.passes else nearest_interp(ratios, loop.passes)
            if isinstance(hook, MagCacheHeadHook) and loop.place:
                hook.state_manager.get_state().step_index = loop.index

    return HookedCache(target, configure, before)


METHOD = Method("mag_cache", MagCache, attach, knob=("threshold", "raise it"), supports=known_to_diffusers("MagCache"))
