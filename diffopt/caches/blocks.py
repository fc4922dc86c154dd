"""Block caching: at some steps a block is not computed, what it gave before stands for it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from diffopt.caches.loop import Loop
from diffopt.caches.meter import Meter, statistics
from diffopt.caches.policy import Reuse, Scope, segments
from diffopt.caches.segment import Place, Segment, Select
from diffopt.caches.statistics import Statistics
from diffopt.caches.target import Target, claim, release
from diffopt.caches.wrapper import Wrapper, is_compiled
from diffopt.models import Family

Choose = Callable[[Sequence[str]], Mapping[str, Select]]
"""From a backbone's block names to the reused ones', each with the steps. Raises ValueError for names that do not fit."""


class BlockCache:
    """Cached blocks of every backbone of a pipeline. Raises ValueError where they cannot be cached as asked."""

    def __init__(self, target: Target, choose: Choose, part: Scope = "block", reuse: Reuse = "output"):
        self.loop = Loop(target.pipe, self.reset)
        self.sides = [_Side(self.loop, target, name, choose, part, reuse) for name in target.backbones]
        claim(target.backbones, self)
        self.backbones = target.backbones
        for side in self.sides:
            side.attach()

    @property
    def on(self) -> bool:
        return self.loop.is_open

    def reset(self) -> None:
        for side in self.sides:
            side.forget()

    def enable(self) -> None:
        for side in self.sides:
            side.check()
        self.loop.open()

    def disable(self) -> None:
        self.loop.close()

    def detach(self) -> None:
        self.disable()
        for side in self.sides:
            side.detach()
        release(self.backbones)

    def statistics(self) -> Statistics:
        """Counts calls of blocks, or of the attention layers within them."""
        return statistics(
            (
                side.meter,
                {name: s.hits for s in side.segments for name in s.modules},
                {name: s.misses for s in side.segments for name in s.modules},
            )
            for side in self.sides
        )


class _Side:
    """One backbone: where its calls are, and the segments of its blocks."""

    def __init__(self, loop: Loop, target: Target, name: str, choose: Choose, part: Scope, reuse: Reuse):
        self.loop = loop
        self.name = name
        self.backbone = target.backbones[name]
        self.now: Place | None = None
        """Of the call that is being computed; None where nothing is cached."""
        self.meter = Meter(self.backbone)
        self.blocks = target.blocks(self.backbone)
        self.segments = divide(target.family, name, self.blocks, choose, part, reuse)
        self.part = part
        self._attached: list[Any] = []

    def attach(self) -> None:
        self._attached = [
            self.backbone.register_forward_pre_hook(self._before, with_kwargs=True),
            self.backbone.register_forward_hook(self._after, always_call=True),
            *(Wrapper(m, s.around(n, lambda: self.now)) for s in self.segments for n, m in s.modules.items()),
        ]

    def detach(self) -> None:
        for hook in self._attached:
            hook.remove()
        self._attached = []

    def check(self) -> None:
        """Raises ValueError where compiled code would not ask the cache."""
        if is_compiled(self.backbone):
            raise ValueError(
                f"{self.name}: is compiled in one piece, in which no block can be skipped (got torch.compile of all of it); "
                "compile its blocks, by compile_repeated_blocks() or block.compile()"
            )
        held = {} if self.part == "block" else self.blocks
        for name in (n for n, block in held.items() if any(is_compiled(m) for m in block.modules())):
            raise ValueError(
                f"{self.name}: {name} is compiled in one piece, in which its attention cannot be skipped "
                f"(got part={self.part}); cache whole blocks, or leave them uncompiled"
            )

    def forget(self) -> None:
        self.now = None
        for segment in self.segments:
            segment.forget()

    def _before(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.loop.is_open:
            return
        index, place = self.loop.call(self.backbone), self.loop.place
        self.now = Place(*place, index) if place else None
        self.meter.see(args, kwargs)

    def _after(self, *_: Any) -> None:
        self.now = None


def divide(
    family: Family, name: str, blocks: Mapping[str, torch.nn.Module], choose: Choose, part: Scope, reuse: Reuse
) -> list[Segment]:
    """What is reused of the blocks of the backbone `name`, as one. Raises ValueError where that cannot be reused."""
    chosen = choose([*blocks])
    chained = "down_blocks" not in family.blocks  # a UNet's blocks take each other's skip connections too
    if reuse == "residual" and not chained:
        raise ValueError(f"reuse: {name}'s blocks give other shapes than they take (got residual); reuse their output")
    if part != "block" and reuse != "output":
        raise ValueError(f"reuse: attention is reused by its output (got {reuse}); reuse that")
    return [*_segments(blocks, chosen, reuse, chained)] if part == "block" else [*_layers(blocks, chosen, part)]


def _segments(
    blocks: Mapping[str, torch.nn.Module], chosen: Mapping[str, Select], reuse: Reuse, chained: bool
) -> Iterator[Segment]:
    """Side by side in one list, and reused at the same steps; between two lists a backbone may do something else."""
    for names in segments([*blocks], chosen):
        group: list[str] = []
        for name in names:
            if group and not (chained and _list(name) == _list(group[0]) and chosen[name] == chosen[group[0]]):
                yield Segment({n: blocks[n] for n in group}, chosen[group[0]], reuse)
                group = []
            group.append(name)
        yield Segment({n: blocks[n] for n in group}, chosen[group[0]], reuse)


def _list(name: str) -> str:
    return name.rpartition(".")[0]


def _layers(blocks: Mapping[str, torch.nn.Module], chosen: Mapping[str, Select], part: Scope) -> Iterator[Segment]:
    """The attention layers of the chosen blocks, each by itself. Raises ValueError where there are none."""
    found = 0
    for name, reuses in chosen.items():
        for path, layer in blocks[name].named_modules():
            crosses = _crosses(path, layer)
            if crosses is not None and crosses == (part == "cross_attention"):
                found += 1
                yield Segment({f"{name}.{path}": layer}, reuses)
    if not found:
        raise ValueError(f"part: these blocks have no {part.replace('_', '-')} (got {part}); reuse another part of them")


def _crosses(path: str, layer: torch.nn.Module) -> bool | None:
    """Whether an attention layer looks at the text alone; None for what is no attention layer."""
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention

    if not isinstance(layer, (Attention, AttentionModuleMixin)):
        return None
    return bool(getattr(layer, "is_cross_attention", path.endswith("attn2")))  # LTX's layers do not say
