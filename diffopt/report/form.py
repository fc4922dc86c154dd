"""One form of a run's backbone: its source, a checkpoint, a graph or a plan, and what it takes on disk."""

from dataclasses import dataclass

from diffopt.files.graph import OnnxGraphFile
from diffopt.files.plan import EnginePlanFile
from diffopt.text import size


@dataclass(frozen=True)
class Form:
    step: str
    """That made it."""
    what: str
    """It is, for people."""
    bytes: int
    note: str
    base: bool = False
    """Whether it is the one that the others are a share of."""
    share: float | None = None


def parts(head: OnnxGraphFile | EnginePlanFile) -> list[str]:
    """What there is to say of a graph's parts, or a plan's: their sizes in the order in which they run."""
    found = (head.pieces if isinstance(head, OnnxGraphFile) else head.plans) or ()
    if not found:
        return []
    sizes = ", ".join(size(p.bytes) + (" (not in steps that reuse)" if p.reused else "") for p in found)
    return [f"in {len(found)} parts: {sizes}"]
