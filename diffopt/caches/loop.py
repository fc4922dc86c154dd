"""Where a pipeline is in its denoising loop, by what it asks of its scheduler.

Calls of the backbone do not tell: guidance may take two for a prediction, a scheduler of higher order several predictions
for a step. Every pipeline of diffusers sets the timesteps when it begins, and calls `step` once in each pass of its loop.
"""

from collections import Counter
from collections.abc import Callable
from copy import copy, deepcopy
from functools import wraps
from typing import Any

from diffopt.caches.schedule import steps_of

METHODS = ("set_timesteps", "step")


def watch(scheduler: Any, **methods: Callable[..., Any]) -> None:
    """Put them in the place of its own. A copy, as LTX-2's pipeline makes one that steps the sound, has its own again."""

    def copied(memo: dict[int, Any]) -> Any:
        other = copy(scheduler)
        unwatch(other)
        return deepcopy(other, memo)

    scheduler.__dict__ |= methods | {"__deepcopy__": copied}


def unwatch(scheduler: Any) -> None:
    for name in (*METHODS, "__deepcopy__"):
        scheduler.__dict__.pop(name, None)


class Loop:
    """Watches a pipeline's scheduler while it is open. `begin` is called where a run begins, and where one has ended.

    A run that an error ended leaves nothing: the next one begins anew.
    """

    def __init__(self, pipe: Any, begin: Callable[[], None]):
        self.pipe = pipe
        self.begin = begin
        self.index = 0
        """Of the pass, from 0."""
        self.runs = 0
        """How many have begun or ended: a run's own number."""
        self._passes: list[tuple[int, int]] = []
        self._calls: Counter[int] = Counter()
        self._scheduler: Any = None

    @property
    def is_open(self) -> bool:
        return self._scheduler is not None

    @property
    def place(self) -> tuple[int, int] | None:
        """The denoising step, from 0, and which pass of it; None outside a run."""
        return self._passes[self.index] if self.index < len(self._passes) else None

    @property
    def passes(self) -> int:
        """How many the run has."""
        return len(self._passes)

    @property
    def timestep(self) -> float:
        """Of the pass, as the scheduler counts; below 0 outside a run."""
        return float(self._scheduler.timesteps[self.index]) if self.place else -1.0

    def call(self, backbone: Any) -> int:
        """Count a call of the backbone: which of its calls in this pass it is, from 0."""
        if self.pipe.scheduler is not self._scheduler:  # exchanged since: the run, if one has begun, cannot be followed
            self.open()
        found = self._calls[id(backbone)]
        self._calls[id(backbone)] += 1
        return found

    def open(self) -> None:
        self.close()
        scheduler = self._scheduler = self.pipe.scheduler
        own = {name: getattr(scheduler, name) for name in METHODS}

        @wraps(own["set_timesteps"])  # pipelines read the signature
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            found = own["set_timesteps"](*args, **kwargs)
            self._restart(steps_of(scheduler))
            return found

        @wraps(own["step"])
        def step(*args: Any, **kwargs: Any) -> Any:
            found = own["step"](*args, **kwargs)
            self.index += 1
            self._calls.clear()
            if self.index == self.passes:
                self._restart([])
            return found

        watch(scheduler, set_timesteps=set_timesteps, step=step)

    def close(self) -> None:
        if self._scheduler is not None:
            unwatch(self._scheduler)
        self._scheduler = None
        self._restart([])

    def _restart(self, passes: list[tuple[int, int]]) -> None:
        self._passes, self.index = passes, 0
        self.runs += 1
        self._calls.clear()
        self.begin()
