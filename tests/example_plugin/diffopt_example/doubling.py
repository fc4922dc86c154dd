"""doubling: the blocks in the middle are computed at steps 0, 1, 2, 4, 8 ... alone, since later steps change less."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from diffopt.caches import Method, Settings


class Doubling(Settings):
    method: Literal["doubling"]
    keep: int = Field(ge=1)
    """Blocks at either end that are computed at every step."""

    def mismatch(self, names: Sequence[str]) -> str | None:
        if names[self.keep : -self.keep]:
            return None
        return f"keep: leaves none of {len(names)} blocks to reuse (got {self.keep}); lower it"


def reuses(step: int) -> bool:
    return step & (step - 1) != 0  # neither 0 nor a power of two


def attach(target: Any, settings: Doubling) -> Any:
    from diffopt.caches.blocks import BlockCache

    return BlockCache(target, lambda names: dict.fromkeys(names[settings.keep : -settings.keep], reuses))


METHOD = Method("doubling", Doubling, attach, knob=("keep", "lower it"))
