"""What the counted ranges say, for the report: which inputs left theirs, what clipping costs, what to do. Imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from diffopt.files.ranges import InputRange, RangesFile
from diffopt.report.sensitivity import ratio

MATTERS = 0.05
"""By how much clipping sets the inputs off, relative to them, from which on something is to be done. FP8's own rounding does by
0.026. The embedded model in INT8 has 44.8 and 42.8 dB of PSNR where it is 0.030 and 0.023, and 31.4 dB at 0.173."""
NARROWED = ("percentile", "mse")
"""Ranges of inputs that are below the largest of them."""
MOST, GOAL = 0.2, 0.9
"""Exclusions: at most this share of the layers, and no more than make up this share of what clipping costs."""


@dataclass(frozen=True)
class Ranges:
    content: RangesFile
    config: Mapping[str, Any]
    """The recipe's groups, as composed."""

    @cached_property
    def beyond(self) -> list[InputRange]:
        """The inputs that left their range, those first that clipping costs most."""
        return sorted((x for x in self.content.inputs if x.beyond), key=lambda x: -_over(x.clipped, x))

    @cached_property
    def clipping(self) -> float:
        """By how much it sets the inputs off: the root of the mean of their squared relative errors."""
        return self._mean([_over(x.clipped, x) for x in self.content.inputs])

    @cached_property
    def rounding(self) -> float:
        """The same of what is within the range."""
        return self._mean([max(_over(x.error - x.clipped, x), 0.0) for x in self.content.inputs])

    @property
    def matters(self) -> bool:
        """Where rounding costs far more, as in four bits, clipping does not."""
        return self.clipping >= max(MATTERS, self.rounding / 2)

    def _mean(self, squares: list[float]) -> float:
        return math.sqrt(sum(squares) / len(squares)) if squares else 0.0

    @cached_property
    def exclusions(self) -> list[str]:
        """Layers to keep in full precision."""
        layers = [x for x in self.beyond if not x.name.endswith("_bmm")]
        found: list[str] = []
        whole, taken = sum(_over(x.clipped, x) for x in layers), 0.0
        for x in layers[: max(1, int(MOST * len(self.content.inputs)))]:
            if found and taken >= GOAL * whole:
                break
            found.append(x.name)
            taken += _over(x.clipped, x)
        return found

    @property
    def block(self) -> str:
        """YAML that a recipe takes as it is, with what it excludes already."""
        kept = [*(self.config["format"].get("exclude") or []), *self.exclusions]
        return "\n".join(["format:", "  exclude:", *(f"    - {name}" for name in dict.fromkeys(kept))])

    @cached_property
    def advice(self) -> list[str]:
        """What to do, the simplest first."""
        calib, format = self.config["calib"], self.config["format"]
        found = [f"raise calib.size (got {calib.get('size')}), with prompts like those that are drawn"] if calib else []
        if (steps := calib.get("n_steps")) and steps < self.content.steps:
            found.append(f"raise calib.n_steps (got {steps}, of {self.content.steps} that are drawn)")
        if (calib.get("percentile") or 1) < 1:
            found.append(f"set calib.percentile=1 (got {calib['percentile']})")
        if (how := calib.get("collect_method", "default")) != "default":
            found.append(f"set calib.collect_method=default (got {how})")
        if (range := format.get("inputs", "max")) in NARROWED:
            found.append(f"set format.inputs=max (got {range})")
        if format.get("name") == "nvfp4" and range == "max":
            found.append("set format.inputs=headroom, which leaves room above what calibration saw")
        smooths = format.get("name") == "int8_sq" or "int8_sq" in (format.get("candidates") or ())
        if (alpha := calib.get("alpha")) and smooths:
            found.append(f"lower calib.alpha (got {alpha:g})")
        if self.exclusions:
            many = len(self.exclusions)
            found.append(
                f"keep the worst {many} layers in full precision by format.exclude" if many > 1 else _one(self.exclusions)
            )
        if any(x.name.endswith("_bmm") for x in self.beyond) and format.get("quantize_mha"):
            found.append("set format.quantize_mha=false")
        return [*found, "choose format=mxfp8 calib=null, whose ranges are found as it computes"]

    @property
    def line(self) -> str | None:
        """For the console; None where no input left its range."""
        if not self.beyond:
            return None
        worst, many = self.beyond[0], len(self.content.inputs)
        said = (
            f"{len(self.beyond)} of {many} inputs left their calibrated range: clipping sets the inputs off by "
            f"{self.clipping:.1%}, rounding by {self.rounding:.1%}"
        )
        if not self.matters:
            return said
        return (
            f"{said}; worst {worst.name}: {worst.beyond / worst.values:.2%} of its values, up to "
            f"{worst.peak:.1f} x the range; {'; or '.join(self.advice)}"
        )


def _one(names: list[str]) -> str:
    return f"keep {names[0]} in full precision by format.exclude"


def _over(squares: float, x: InputRange) -> float:
    return squares / x.energy if x.energy else 0.0


def percent(squares: float, x: InputRange) -> float:
    """A relative error of norms."""
    return 100 * (ratio(max(squares, 0.0), x.energy) or 0.0)
