"""Tiny pipelines whose blocks are cached, and an oracle that reuses outputs by a list written down in a test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import diffusers
import numpy as np
import torch
from tiny import PROMPTS, bench
from torch.utils._pytree import tree_map

from diffopt.caches import METHODS
from diffopt.caches.blocks import BlockCache
from diffopt.caches.policy import Policy
from diffopt.caches.target import session, target_of

STEPS = 4


def opened(tiny: str, scheduler: str | None = None) -> Any:
    """A new copy of a tiny pipeline, with another scheduler where one is named."""
    from diffopt.pipeline.open import open_pipeline

    b = bench(family=tiny)
    pipe = open_pipeline(b.context(), b.pipeline())
    if scheduler:
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    return pipe


def drawn(pipe: Any, tiny: str, rows: int = 1, steps: int = STEPS, seed: int = 7, **kw: Any) -> np.ndarray:
    """Its latents of the first prompts."""
    seeds = [seed + i for i in range(rows)]
    return bench(family=tiny).draw(pipe, list(PROMPTS[:rows]), seeds, steps, decode=False, **kw)


def cached(pipe: Any, *blocks: str, **fields: Any) -> BlockCache:
    """Attached, not yet enabled."""
    policy = Policy(blocks=blocks, **({"every": 2} | fields))
    choose = lambda names: dict.fromkeys(policy.reused(names), policy.reuses)  # noqa: E731
    return BlockCache(target_of(pipe), choose, policy.part, policy.reuse)


@contextmanager
def caching(pipe: Any, *blocks: str, **fields: Any) -> Iterator[BlockCache]:
    cache = cached(pipe, *blocks, **fields)
    with session(cache):
        yield cache
    cache.detach()


def attached(pipe: Any, method: str, **fields: Any) -> Any:
    """A method by its settings, as YAML gives them."""
    target = target_of(pipe)
    settings = METHODS[method].settings(method=method, **fields).filled(target.family)
    return METHODS[method].attach(target, settings)


def copied(x: Any) -> Any:
    return tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) else t, x)


@contextmanager
def replayed(backbone: torch.nn.Module, names: list[str], sources: list[int | None]) -> Iterator[None]:
    """At call i of the backbone the blocks give what they gave at call `sources[i]`; None computes them."""

    def instead(forward: Callable[..., Any]) -> Callable[..., Any]:
        given: list[Any] = []

        def replay(*args: Any, **kwargs: Any) -> Any:
            source = sources[len(given)]
            given.append(copied(forward(*args, **kwargs) if source is None else given[source]))
            return copied(given[-1])

        return replay

    with ExitStack() as stack:
        for name in names:
            block = backbone.get_submodule(name)
            block.forward = instead(block.forward)
            stack.callback(block.__dict__.pop, "forward")
        yield
