"""Which denoising step each pass of a pipeline's loop belongs to. Plain Python on plain numbers.

Pipelines loop over `scheduler.timesteps`. Most schedulers have one for each step that was asked for; those of second
order have two for each but the last, and PNDM has more at the beginning.
"""

from typing import Any


def steps_of(scheduler: Any) -> list[tuple[int, int]]:
    """For each pass (step, which pass of that step), of a scheduler whose timesteps are set.

    Two passes of one step compute at different points of the schedule, so what one computed is not what the other reuses.
    """
    passes = len(scheduler.timesteps)
    runge = getattr(scheduler, "prk_timesteps", None)  # PNDM: four passes for each of its first steps, or one too many
    if runge is not None:
        first = len(runge)
        if first:
            return [(i // 4, i % 4) if i < first else (first // 4 + i - first, 0) for i in range(passes)]
        return [(0, i) if i < 2 else (i - 1, 0) for i in range(passes)]
    order = int(getattr(scheduler, "order", 1))
    return [(i // order, i % order) for i in range(passes)]
