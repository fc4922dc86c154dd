"""In the place of cosmos_guardrail, whose models are on the hub: it refuses prompts about weapons, and inverts every video."""

from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAME, BAD = "cosmos_guardrail", "weapon"


def module() -> ModuleType:
    """Like the package, which gives its class when asked; that is of the class which diffusers' pipeline looks for."""
    made = ModuleType(NAME)
    made.__spec__ = ModuleSpec(NAME, None)
    made.__getattr__ = lambda name: _checker() if name == "CosmosSafetyChecker" else _none(name)  # type: ignore[method-assign]
    return made


def _none(name: str) -> Any:
    raise AttributeError(name)


def _checker() -> type:
    from diffusers.pipelines.cosmos import pipeline_cosmos2_5_predict as theirs

    class CosmosSafetyChecker(theirs.CosmosSafetyChecker):  # type: ignore[misc]
        def __init__(self) -> None:
            """Without models."""

        def to(self, *_: Any, **__: Any) -> None:
            """They would be moved."""

        def check_text_safety(self, prompt: str) -> bool:
            return BAD not in prompt

        def check_video_safety(self, frames: Any) -> Any:
            return 255 - frames

    return CosmosSafetyChecker
