"""cache-dit behind diffopt's protocol: it patches the pipeline while it works, and its blocks are counted."""

from typing import Any

import cache_dit

from diffopt.caches.meter import Meter, statistics
from diffopt.caches.statistics import Statistics
from diffopt.caches.target import Target, claim, release
from diffopt.caches.wrapper import Wrapper


class DualBlockCache:
    """Raises ValueError for a pipeline that cache-dit does not know, and for a backbone that has a cache."""

    def __init__(self, target: Target, config: cache_dit.DBCacheConfig):
        self.pipe = target.pipe
        self.config = config
        self.sides = [_Side(name, backbone, target.blocks(backbone)) for name, backbone in target.backbones.items()]
        self._on = False
        self._own: list[tuple[Any, Any, dict[str, Any]]] = []
        self.backbones = target.backbones
        claim(self.backbones, self)
        for side in self.sides:
            side.attach()

    def reset(self) -> None:
        """cache-dit begins anew at each call of the pipeline by itself, and is not there in between sessions."""

    def enable(self) -> None:
        self._own = [(b, b.__dict__.get("forward"), {**b._modules}) for b in self.backbones.values()]
        try:
            cache_dit.enable_cache(self.pipe, cache_config=self.config)
        except (ValueError, AssertionError) as e:
            raise ValueError(f"method: cache-dit does not take this pipeline (got {type(self.pipe).__name__}: {e})") from e
        self._on = True

    def disable(self) -> None:
        if self._on:
            cache_dit.disable_cache(self.pipe)
        for backbone, forward, children in self._own:  # it leaves FLUX's forward patched, and lists of blocks in another order
            for name in ("forward", "_is_patched"):
                backbone.__dict__.pop(name, None)
            backbone.__dict__ |= {} if forward is None else {"forward": forward}
            backbone._modules.clear()
            backbone._modules.update(children)
        self._on, self._own = False, []

    def detach(self) -> None:
        self.disable()
        for side in self.sides:
            side.detach()
        release(self.backbones)

    def statistics(self) -> Statistics:
        return statistics((side.meter, side.hits(), side.computes) for side in self.sides)


class _Side:
    """One backbone, and how often each of its blocks was computed."""

    def __init__(self, name: str, backbone: Any, blocks: dict[str, Any]):
        self.name = name
        self.backbone = backbone
        self.blocks = blocks
        self.meter = Meter(backbone)
        self.computes = dict.fromkeys(blocks, 0)
        self._attached: list[Any] = []

    def attach(self) -> None:
        def counted(name: str) -> Any:
            def around(compute: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                self.computes[name] += 1
                return compute(*args, **kwargs)

            return around

        self._attached = [
            self.backbone.register_forward_pre_hook(self._before, with_kwargs=True),
            *(Wrapper(block, counted(name)) for name, block in self.blocks.items()),
        ]

    def detach(self) -> None:
        for hook in self._attached:
            hook.remove()
        self._attached = []

    def hits(self) -> dict[str, int]:
        return {name: self.meter.calls - computed for name, computed in self.computes.items()}

    def _before(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.meter.see(args, kwargs)
