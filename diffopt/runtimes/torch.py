"""torch: the plain backbone, or the fake-quantized one (simulated: right pictures, no speed), with or without a cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig

from diffopt.artifact import Checkpoint, Pipeline
from diffopt.block_arithmetic import simulated
from diffopt.checkpoint import restore
from diffopt.errors import GateError
from diffopt.groups.cache import CacheView
from diffopt.pipeline.open import family_of, open_pipeline
from diffopt.runtimes import Running
from diffopt.stage import Context


@contextmanager
def running(
    ctx: Context, pipeline: Pipeline, subject: Checkpoint | None, cache: CacheView | None, *, texts: bool
) -> Iterator[Running]:
    """A pipeline whose backbone is the checkpoint's, for any batch size. Raises GateError for a cache that never hit."""
    family = family_of(pipeline)
    pipe = open_pipeline(ctx, pipeline, restore(ctx, pipeline, subject) if subject else None, texts=texts)
    backbones = [getattr(pipe, name) for name in pipeline.json("pipeline.json")["backbones"]]
    blocks = [block for backbone in backbones for name in family.blocks for block in getattr(backbone, name)]
    calls = _counted(backbones, blocks)
    if cache:
        for backbone in backbones:
            backbone.enable_cache(FirstBlockCacheConfig(threshold=cache.threshold))
    with simulated():
        yield Running(pipe, None, lambda: _computed(calls, len(blocks) // len(backbones)) if cache else 1.0)
    if cache and calls["backbone"] and _computed(calls, len(blocks) // len(backbones)) == 1.0:
        raise GateError(f"cache: never hit (got cache.threshold={cache.threshold}); raise the threshold, or drop the cache")


def _counted(backbones: list[torch.nn.Module], blocks: list[torch.nn.Module]) -> dict[str, int]:
    """Counts calls of the backbone, and of blocks that are computed: a skipped one never reaches its first child."""
    calls = {"backbone": 0, "blocks": 0}

    def count(key: str) -> Any:
        def hook(*_: Any) -> None:
            calls[key] += 1

        return hook

    for backbone in backbones:
        backbone.register_forward_pre_hook(count("backbone"))
    for block in blocks:
        next(block.children()).register_forward_pre_hook(count("blocks"))
    return calls


def _computed(calls: dict[str, int], blocks: int) -> float:
    return calls["blocks"] / max(1, calls["backbone"] * blocks)
