"""A format for every layer by itself, chosen among candidates under a budget: rules of exact layer names."""

from collections.abc import Iterable, Mapping
from typing import Any

from diffopt import formats
from diffopt.formats.method import Method, Rule

FULL = "full"
"""Stands among the candidates for leaving a layer in the model's own precision."""

METHOD = Method(
    name="auto",
    weight={},  # the candidates'
    input={},
    algorithm="max",
    weight_bits=16,
    attention=False,
)

KINDS = {"linear": "nn.Linear", "convolution": "nn.Conv2d"}


def rules(layers: Iterable[Mapping[str, Any]]) -> list[Rule]:
    """Everything off, then weight and input of each layer, {name, kind, format}, as its format wants them."""
    found: list[Rule] = [{"quantizer_name": "*", "enable": False}]
    for layer in layers:
        if layer["format"] == FULL:
            continue
        method = formats.method(layer["format"])
        weight, entering = (
            method.convolution or (None, None) if layer["kind"] == "convolution" else (method.weight, method.input)
        )
        for which, attributes in (("weight", weight), ("input", entering)):
            name = f"{layer['name']}.{which}_quantizer"
            found.append({"quantizer_name": name, "parent_class": KINDS[layer["kind"]], "cfg": attributes})
    return found


def calibration(names: Iterable[str], alpha: float | None) -> Any:
    """modelopt's algorithms of these formats, in the order in which `checkpoint.quantize` applies them to their layers."""
    methods = [formats.method(n) for n in sorted({*names} - {FULL})]
    wanted = {m.algorithm for m in methods}
    smoothing = [m.calibration(alpha) for m in methods if m.algorithm == "smoothquant"]
    # SmoothQuant's convolutions are calibrated on plain maxima, so they need both.
    return [*smoothing, "max"] if smoothing else "max" if "max" in wanted else None
