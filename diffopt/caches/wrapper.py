"""Standing before a module's call, outside of code that torch compiled for it."""

from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo import OptimizedModule

Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""A function of the module's own call and its arguments."""


class Wrapper:
    """`around` answers the module's calls. Its name, its parameters and its forward stay what they are.

    torch calls `_compiled_call_impl` of a module where it has one, which is how `module.compile()` and diffusers'
    `compile_repeated_blocks` work; this takes that place, so that a skipped block skips its compiled code, and whether it
    is skipped is no guard of that code. Compiling the module later, as before, compiles what is within.
    """

    def __init__(self, module: torch.nn.Module, around: Around):
        self.module = module
        self._compiled: Callable[..., Any] | None = module.__dict__.get("_compiled_call_impl")

        def call(*args: Any, **kwargs: Any) -> Any:
            return around(self._compiled or module._call_impl, args, kwargs)

        def compiled(*args: Any, **kwargs: Any) -> None:
            self._compiled = torch.compile(module._call_impl, *args, **kwargs)

        self._call = call
        module.__dict__ |= {"_compiled_call_impl": call, "compile": compiled}

    def remove(self) -> None:
        own = self.module.__dict__
        own.pop("compile", None)
        if own.get("_compiled_call_impl") is self._call:
            own.pop("_compiled_call_impl")
            if self._compiled is not None:
                own["_compiled_call_impl"] = self._compiled


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether torch compiled the module as a whole; one that is wrapped only is not."""
    call = module.__dict__.get("_compiled_call_impl")
    return isinstance(module, OptimizedModule) or (call is not None and call.__qualname__ != _WRAPPED)


_WRAPPED = f"{Wrapper.__init__.__qualname__}.<locals>.call"
