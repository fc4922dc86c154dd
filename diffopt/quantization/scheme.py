"""What becomes of each layer: modelopt's rules, its calibration, and which layers must be quantized in the end."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffopt import formats
from diffopt.artifact import Mix, Pipeline
from diffopt.formats import auto
from diffopt.formats.method import Rule
from diffopt.groups import FormatView
from diffopt.pipeline.open import family_of
from diffopt.quantization.layers import expected_layers

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Scheme:
    rules: list[Rule]
    algorithm: Any
    """modelopt's, as a format's `calibration` gives it."""
    layers: list[str]
    """Those whose weights it quantizes."""
    weight_bits: float
    """Stored bits per weight; of a mix, the mean."""
    mix: dict[str, str] | None = None
    """By layer its format, where each has one of its own."""


def uniform(backbone: "torch.nn.Module", pipeline: Pipeline, format: FormatView, alpha: float | None) -> Scheme:
    """One format for every layer that the family and the user do not keep in full precision."""
    family, method, pinned = family_of(pipeline), formats.method(format.name), pipeline.json("pipeline.json")
    kept = family.kept(pinned["blocks"], pinned["backbones"])
    convolutions = bool(method.convolution) and family.convolutions
    return Scheme(
        method.rules(kept, format.exclude, format.quantize_mha, format.block_size, convolutions),
        method.calibration(alpha, format.rank),
        expected_layers(backbone, [*kept, *format.exclude], convolutions),
        method.bits(format.block_size),
    )


def mixed(mix: Mix, alpha: float | None) -> Scheme:
    """The format of each layer that was chosen for it."""
    chosen = mix.json("mix.json")
    names = {x["name"]: x["format"] for x in chosen["layers"] if x["format"] != auto.FULL}
    rules, algorithm = auto.rules(chosen["layers"]), auto.calibration(names.values(), alpha)
    return Scheme(rules, algorithm, list(names), round(chosen["bits"], 3), names)
