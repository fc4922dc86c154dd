"""Block caching for those who script, by the names of Model-Optimizer's cache diffusion.

    from diffopt import cachify
    cachify.prepare(pipe, cachify.SDXL_DEFAULT_CONFIG)
    with cachify.infer(pipe) as cached_pipe:
        image = cached_pipe(prompt, num_inference_steps=20).images[0]

A config is a list of `{"wildcard_or_filter_func": ..., "select_cache_step_func": ...}`; of entries that match one block
the last counts. The first is a function of a block's name, a glob, or a regular expression after `re:`. The second is a
function of the denoising step, from 0, that tells whether the block is reused at it, or a text: `every 2` computes it at
every other step, `10:20` reuses it at steps 10 to 19 and `10:` from 10 on, `1,3,5` at these.

Unlike the original's, a block keeps its name and its parameters, a step is one of the pipeline's and not a backbone call,
nothing is carried from one run into the next, and only whole blocks are cached. All functions raise ValueError, in a line
that says what to do.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict

from diffopt.caches.blocks import BlockCache
from diffopt.caches.policy import check_left, check_pattern, matched
from diffopt.caches.statistics import Statistics
from diffopt.caches.target import OWNER, Target, target_of


class Entry(TypedDict):
    wildcard_or_filter_func: str | Callable[[str], Any]
    select_cache_step_func: str | Callable[[int], Any]


Config = Sequence[Entry]

ODD = "every 2"
# The original's. Its own for PixArt looks for a dot after the block's number, which no block's name has: all 28 are cached.
SDXL_DEFAULT_CONFIG: Config = [{"wildcard_or_filter_func": r"re:^(?!up_blocks\.2)", "select_cache_step_func": ODD}]
SVD_DEFAULT_CONFIG: Config = [{"wildcard_or_filter_func": r"re:^(?!up_blocks\.3)", "select_cache_step_func": ODD}]
SD3_DEFAULT_CONFIG: Config = [{"wildcard_or_filter_func": r"re:\.(?!(1[6-9]|2[0-3])$)\d+$", "select_cache_step_func": ODD}]
PIXART_DEFAULT_CONFIG: Config = [{"wildcard_or_filter_func": r"re:\.(?!2[1-7]$)\d+$", "select_cache_step_func": "every 3"}]


def prepare(pipe: Any, *config: int | Config) -> None:
    """`prepare(pipe, config)` or `prepare(pipe, num_inference_steps, config)`: attach the cache, switched on.

    Without a config it is the family's own policy. What was prepared before is detached. With the number of steps a
    config that reuses nothing in so many is refused.
    """
    steps = next((c for c in config if isinstance(c, int)), None)
    entries: Any = next((c for c in config if not isinstance(c, int)), None)
    target = target_of(pipe)
    if entries is None:
        cache = _own(target, steps)
    else:
        selects = [(e["wildcard_or_filter_func"], _select(e["select_cache_step_func"])) for e in entries]
        if steps is not None and not any(select(step) for _, select in selects for step in range(1, steps)):
            raise ValueError(f"select_cache_step_func: reuses nothing in {steps} steps (got {entries}); choose other steps")
        detach(pipe)
        cache = BlockCache(target, lambda names: _chosen(selects, names))
    cache.enable()


def enable(pipe: Any) -> None:
    _cache(pipe).enable()


def disable(pipe: Any) -> None:
    """Every block is computed, until it is enabled again."""
    _cache(pipe).disable()


@contextmanager
def infer(pipe: Any) -> Iterator[Any]:
    """Within it the cache works, from nothing; afterwards it is on or off as before, and empty, whatever happened."""
    cache = _cache(pipe)
    before = cache.on
    cache.reset()
    try:
        cache.enable()
        yield pipe
    finally:
        if not before:
            cache.disable()
        cache.reset()


def reset_status(pipe: Any) -> None:
    """Forget what was computed. Every run of the pipeline does so by itself."""
    _cache(pipe).reset()


def statistics(pipe: Any) -> Statistics:
    """What it saved since it was prepared."""
    return _cache(pipe).statistics()


def detach(pipe: Any) -> None:
    """Leave the pipeline as it was before `prepare`, which need not have been called."""
    for backbone in target_of(pipe).backbones.values():
        if isinstance(found := backbone.__dict__.get(OWNER), BlockCache):
            found.detach()


def _own(target: Target, steps: int | None) -> BlockCache:
    from diffopt.caches.cachify import Cachify, attach

    settings = Cachify(method="cachify").filled(target.family)
    if not settings.blocks:
        raise ValueError(f"config: {target.family.name} has no policy of its own (got None); give one")
    if steps is not None and (misfit := settings.misfit(target.family, steps)):
        raise ValueError(misfit)
    detach(target.pipe)
    found = attach(target, settings)
    assert isinstance(found, BlockCache)
    return found


def _cache(pipe: Any) -> BlockCache:
    backbones = target_of(pipe).backbones
    found = next(iter(backbones.values())).__dict__.get(OWNER)
    if not isinstance(found, BlockCache):
        raise ValueError(f"pipe: is not prepared (got a {type(pipe).__name__}); call cachify.prepare(pipe, config) first")
    return found


def _chosen(
    selects: Sequence[tuple[str | Callable[[str], Any], Callable[[int], bool]]], names: Sequence[str]
) -> dict[str, Callable[[int], bool]]:
    found: dict[str, Callable[[int], bool]] = {}
    for where, select in selects:
        if isinstance(where, str):
            check_pattern(where)
            hit = matched(where, names)
        else:
            hit = {n for n in names if where(n)}
        found |= dict.fromkeys(hit, select)
    check_left(found, names, [where for where, _ in selects])
    return {n: found[n] for n in names if n in found}


def _select(given: str | Callable[[int], Any]) -> Callable[[int], bool]:
    if not isinstance(given, str):
        return lambda step: bool(given(step))
    text = given.strip()
    if (every := re.fullmatch(r"every (\d+)", text)) and int(every[1]) > 1:
        return lambda step: step % int(every[1]) != 0
    if span := re.fullmatch(r"(\d+):(\d*)", text):
        return lambda step: int(span[1]) <= step and (not span[2] or step < int(span[2]))
    if re.fullmatch(r"\d+(,\s*\d+)*", text):
        steps = {int(n) for n in text.split(",")}
        return lambda step: step in steps
    raise ValueError(
        f"select_cache_step_func: does not say which steps (got {given!r}); write 'every 2', '10:20', '10:' or '1,3,5'"
    )
