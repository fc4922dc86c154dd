"""What becomes of each layer: modelopt's rules, its calibration, and which layers must be quantized in the end."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffopt import formats
from diffopt.artifact import Mix, Pipeline
from diffopt.files.mix import MixedLayer, MixFile
from diffopt.files.pipeline import PipelineFile
from diffopt.formats.auto import FULL
from diffopt.formats.method import Rule
from diffopt.groups import FormatView
from diffopt.pipeline.open import family_of
from diffopt.quantization.layers import expected_layers

if TYPE_CHECKING:
    import torch

KINDS = {"linear": "nn.Linear", "convolution": "nn.Conv2d"}


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
    family, method, pinned = (
        family_of(pipeline),
        formats.method(format.name).of(format.inputs, format.awq),
        PipelineFile.read(pipeline.path),
    )
    kept = family.kept(pinned.blocks, pinned.backbones)
    convolutions = bool(method.convolution) and family.convolutions
    return Scheme(
        method.rules(kept, format.exclude, format.quantize_mha, format.block_size, convolutions),
        method.calibration(alpha, format.rank),
        expected_layers(backbone, [*kept, *format.exclude], convolutions),
        method.bits(format.block_size),
    )


def mixed(mix: Mix, alpha: float | None) -> Scheme:
    """The format of each layer that was chosen for it."""
    chosen = MixFile.read(mix.path)
    names = {x.name: x.format for x in chosen.layers if x.format != FULL}
    algorithm = calibration(names.values(), alpha)
    return Scheme(rules(chosen.layers), algorithm, list(names), round(chosen.bits, 3), names)


def rules(layers: Iterable[MixedLayer]) -> list[Rule]:
    """Everything off, then weight and input of each layer as its format wants them."""
    found: list[Rule] = [{"quantizer_name": "*", "enable": False}]
    for layer in layers:
        if layer.format == FULL:
            continue
        method = formats.method(layer.format)
        weight, entering = method.convolution or (None, None) if layer.kind == "convolution" else (method.weight, method.input)
        for which, attributes in (("weight", weight), ("input", entering)):
            name = f"{layer.name}.{which}_quantizer"
            found.append({"quantizer_name": name, "parent_class": KINDS[layer.kind], "cfg": attributes})
    return found


def calibration(names: Iterable[str], alpha: float | None) -> Any:
    """modelopt's algorithms of these formats, in the order in which `checkpoint.quantize` applies them to their layers."""
    methods = [formats.method(n) for n in sorted({*names} - {FULL})]
    wanted = {m.algorithm for m in methods}
    smoothing = [m.calibration(alpha) for m in methods if m.algorithm == "smoothquant"]
    # SmoothQuant's convolutions are calibrated on plain maxima, so they need both.
    return [*smoothing, "max"] if smoothing else "max" if "max" in wanted else None
