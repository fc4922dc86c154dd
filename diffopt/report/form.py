"""One form of a run's backbone: its source, a checkpoint, a graph or a plan, and what it takes on disk."""

from dataclasses import dataclass

from diffopt.files.checkpoint import CheckpointFile
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


def held(head: CheckpointFile, extremes: bool) -> str:
    """What a calibrated checkpoint has; `extremes` says whether those of its inputs are there, as without a search."""
    found = " and ".join(["scales", *["extremes"] * extremes, *["low-rank parts"] * bool(head.rank)])
    return f"{found}, with the codes of its weights" if head.rounding == "gptq" else f"{found}, no weights"


def parts(head: OnnxGraphFile | EnginePlanFile) -> list[str]:
    """What there is to say of a graph's parts, or a plan's: their sizes in the order in which they run."""
    found = (head.pieces if isinstance(head, OnnxGraphFile) else head.plans) or ()
    if not found:
        return []
    sizes = ", ".join(size(p.bytes) + (" (not in steps that reuse)" if p.reused else "") for p in found)
    return [f"in {len(found)} parts: {sizes}"]


LITTLE = 0.02
"""A plan's share beside its weights of which nothing is said."""


def code(plan: EnginePlanFile, taken: int, weights: int, graph: int | None, source: int | None) -> list[str]:
    """What of a plan of `taken` bytes is no weight, and why it may so be larger than its graph or its source's backbone.

    Of a plan with one to eight INT8 layers by TensorRT-RTX 1.7 that was 0.27 to 0.41 MB, whether they were 64 or 512 wide,
    and the weights were in it byte for byte as the graph has them; of a plan in FP32 it was 0.02 MB.
    """
    rest = taken - weights
    if rest < LITTLE * taken:
        return []
    larger = [name for name, bytes in (("its graph", graph), ("its source", source)) if bytes is not None and taken > bytes]
    why = f"; so it is larger than {' and '.join(larger)}: the code grows with the operators, not with their weights"
    return [f"{size(weights)} of weights and {size(rest)} of {plan.builder}'s code for the operators" + (why if larger else "")]


def products(plan: EnginePlanFile) -> str:
    """How many of the graph's matrix products the plan runs in which precision; empty where its builder did not tell."""
    if plan.products is None:
        return ""
    counts = ", ".join(f"{n} in {precision}" for precision, n in plan.products.items())
    of = f"of {sum(plan.products.values())} matrix products, {plan.quantized_products} of them quantized in the graph: "
    return of + counts
