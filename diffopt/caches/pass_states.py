"""State of diffusers' hooks for each backbone call of a pass.

The attention caches keep one state for a layer, as if there were one backbone call to a step. Where guidance takes a call
of its own, the second call would be given what the first one computed.
"""

from collections.abc import Callable
from typing import Any

from diffopt.caches.loop import Loop


def state_per_pass(fresh: Callable[[], Any]) -> Callable[[Loop, list[Any], int], None]:
    """Gives each hook a state of its own for each pass of a step and call of a pass, new in every run; `fresh` makes one.

    To be called before every backbone call.
    """
    states: dict[Any, Any] = {}
    run = 0

    def before(loop: Loop, hooks: list[Any], call: int) -> None:
        nonlocal run
        if loop.runs != run:
            states.clear()
            run = loop.runs
        pass_index = loop.place and loop.place[1]
        for hook in hooks:
            key = (id(hook), pass_index, call)
            if key not in states:
                states[key] = fresh()
            hook.state = states[key]

    return before
