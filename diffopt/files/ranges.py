"""`ranges.json`: how often what enters a quantizer left the range that it was calibrated for, counted while sampling."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffopt.files.json_file import JsonFile


@dataclass(frozen=True)
class InputRange:
    """Of one quantizer of inputs, over all its calls. Sums of squares are of the values that it rounds: smoothed, where they
    are."""

    name: str
    """The layer, or `ATTENTION.q_bmm` of an operand of attention."""
    calls: int
    calls_beyond: int
    """Those in which some value was beyond the range."""
    values: int
    beyond: int
    peak: float
    """The largest magnitude, as a multiple of the range."""
    energy: float
    """Sum of the values' squares."""
    error: float
    """The same of what rounding and clipping changed them by: over `energy`, the relative error squared."""
    clipped: float
    """Of `error` the part that clipping made: the sum of the squares of what is beyond the range."""


@dataclass(frozen=True)
class RangesFile(JsonFile):
    NAME = "ranges.json"
    SCHEMA = "diffopt.ranges/1"

    prompts: int
    """That were drawn."""
    steps: int
    """Denoising steps of each."""
    inputs: tuple[InputRange, ...]
    """In the model's order; without those whose scale is found as they are rounded, which have no range."""


def merged(parts: Sequence[RangesFile]) -> RangesFile:
    """Of parts of the prompts, drawn by the same model: that of all of them."""
    rows = []
    for inputs in zip(*(p.inputs for p in parts), strict=True):
        sums = {n: sum(getattr(x, n) for x in inputs) for n in ("calls", "calls_beyond", "values", "beyond")}
        squares = {n: sum(getattr(x, n) for x in inputs) for n in ("energy", "error", "clipped")}
        rows.append(InputRange(name=inputs[0].name, peak=max(x.peak for x in inputs), **sums, **squares))
    return RangesFile(sum(p.prompts for p in parts), parts[0].steps, tuple(rows))
