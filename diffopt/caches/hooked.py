"""diffusers' own caches behind diffopt's protocol: followed by step, emptied before each run, and counted."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from diffopt.caches.loop import Loop
from diffopt.caches.meter import Meter, statistics
from diffopt.caches.statistics import Statistics
from diffopt.caches.target import Target, claim, release

Configure = Callable[[Loop, str], Any]
"""diffusers' config of a cache, from the loop that tells it the timestep and the backbone's name."""


class HookedCache:
    """One of diffusers' caches on every backbone of a pipeline. Raises ValueError for a backbone that has a cache.

    `each` is called before every backbone call, with the backbone's hooks and the call's number in the pass.
    """

    def __init__(self, target: Target, configure: Configure, each: Callable[[Loop, list[Any], int], None] | None = None):
        self.loop = Loop(target.pipe, self.reset)
        self.configure = configure
        self.each = each
        self.sides = [_Side(self, name, backbone) for name, backbone in target.backbones.items()]
        self.backbones = target.backbones
        claim(self.backbones, self)

    def reset(self) -> None:
        """An interrupted run leaves diffusers' hooks half way."""
        for side in self.sides:
            side.backbone._reset_stateful_cache()

    def enable(self) -> None:
        for side in self.sides:
            side.enable(self.configure(self.loop, side.name))
        self.loop.open()

    def disable(self) -> None:
        self.loop.close()
        for side in self.sides:
            side.disable()

    def detach(self) -> None:
        self.disable()
        release(self.backbones)

    def statistics(self) -> Statistics:
        return statistics((side.meter, side.hits(), side.computes) for side in self.sides)


class _Side:
    """One backbone. A unit is a module that a hook can skip: a block, or an attention layer."""

    def __init__(self, cache: HookedCache, name: str, backbone: Any):
        self.cache = cache
        self.name = name
        self.backbone = backbone
        self.meter = Meter(backbone)
        self.computes: dict[str, int] = {}
        self._hooks: list[Any] = []
        self._own: list[tuple[Any, Any]] = []
        self._watch: Any = None

    def enable(self, config: Any) -> None:
        before = {id(hook) for _, hook in hooks(self.backbone)}
        self.backbone.enable_cache(config)
        added = [(name, hook) for name, hook in hooks(self.backbone) if name and id(hook) not in before]
        if not added:
            self.backbone.disable_cache()
            raise ValueError(f"{self.name}: there is nothing in it that this cache knows (got {type(self.backbone).__name__})")
        self._hooks = [hook for _, hook in added]
        for name, hook in added:
            self._own.append((hook.fn_ref, hook.fn_ref.original_forward))
            hook.fn_ref.original_forward = self._counted(name, hook.fn_ref.original_forward)
        self._watch = self.backbone.register_forward_pre_hook(self._before, with_kwargs=True)

    def disable(self) -> None:
        if self._watch is None:
            return
        self._watch.remove()
        for reference, own in self._own:
            reference.original_forward = own
        self._own, self._hooks, self._watch = [], [], None
        self.backbone.disable_cache()

    def hits(self) -> dict[str, int]:
        return {name: self.meter.calls - computed for name, computed in self.computes.items()}

    def _counted(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        self.computes.setdefault(name, 0)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.computes[name] += 1
            return forward(*args, **kwargs)

        return counted

    def _before(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self.cache.loop.call(self.backbone)
        self.meter.see(args, kwargs)
        call_named(self.backbone)
        if self.cache.each is not None:
            self.cache.each(self.cache.loop, self._hooks, call)


def call_named(backbone: torch.nn.Module) -> None:
    """Give the call that a backbone is in a name, where its pipeline does not, as FLUX.1 Kontext's and Fill's: diffusers'
    caches keep what they know by it. Such pipelines have one call a step."""
    from diffusers.hooks.hooks import CacheContext, StateManager, _set_cache_context

    managers = [x for _, hook in hooks(backbone) for x in vars(hook).values() if isinstance(x, StateManager)]
    if all(m._context is None for m in managers):
        _set_cache_context(backbone, CacheContext("cond"))


def hooks(backbone: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """diffusers' hooks, by the names of their modules."""
    for name, module in backbone.named_modules():
        if registry := getattr(module, "_diffusers_hook", None):
            for hook in registry.hooks.values():
                yield name, hook
