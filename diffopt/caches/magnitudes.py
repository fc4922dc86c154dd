"""MagCache's ratios as diffusers' own hook finds them when it calibrates: it prints them, here they are kept.

The ratio of a call is the mean over tokens of the magnitude of what all blocks add, over that of the call before in the same
prediction of guidance; 1 for the first call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffopt.caches.hooked import call_named, hooks
from diffopt.caches.loop import Loop
from diffopt.caches.target import Target, claim, release

NEVER = 2**31
"""Calls after which the hook would print its ratios and begin anew. Here the loop tells where a run ends."""

Run = dict[str, dict[str, list[float]]]
"""By backbone, and by diffusers' name of the call, a ratio for each pass of the loop; 1 where the backbone is not called."""


@contextmanager
def measured(target: Target) -> Iterator[list[Run]]:
    """Within it every run of the pipeline adds its ratios to the list; every block of every step is computed.

    Raises ValueError for a backbone that has a cache already.
    """
    from diffusers.hooks.mag_cache import MagCacheConfig, MagCacheHeadHook

    runs: list[Run] = []

    def begin() -> None:
        for backbone in target.backbones.values():
            backbone._reset_stateful_cache()
        if loop.passes:
            runs.append({})

    loop = Loop(target.pipe, begin)
    claim(target.backbones, loop)
    watches = []

    def watch(name: str, backbone: Any) -> None:
        backbone.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=NEVER))
        head = next(hook for _, hook in hooks(backbone) if isinstance(hook, MagCacheHeadHook))

        def called(*_: Any) -> None:
            state = head.state_manager
            ratios = runs[-1].setdefault(name, {}).setdefault(state.context.name, [1.0] * loop.passes)
            ratios[loop.index] = state.get_state().calibration_ratios[-1]

        watches.append(backbone.register_forward_pre_hook(lambda module, *_: call_named(module)))
        watches.append(backbone.register_forward_hook(called))

    try:
        for name, backbone in target.backbones.items():
            watch(name, backbone)
        loop.open()
        yield runs
    finally:
        loop.close()
        for hook in watches:
            hook.remove()
        for backbone in target.backbones.values():
            backbone.disable_cache()
        release(target.backbones)
