"""Layers of which no scale can be taken: all their weights are zero, or all that reaches them, or nothing reaches them.

They are refused by name, in every format that takes scales. A format that finds its scales as it rounds has zeros exactly.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from diffopt.errors import GateError

FIRST = 4096
"""Weights that are looked at before all are: of a layer that computes something they tell."""


def zero_weights(backbone: torch.nn.Module, layers: Iterable[str]) -> list[str]:
    """Those of the layers whose weights are all zero."""
    found = []
    for name in layers:
        layer: Any = backbone.get_submodule(name)
        weights: torch.Tensor = layer.weight.detach()
        if not weights.flatten()[:FIRST].any() and not weights.any():
            found.append(name)
    return found


def zero_inputs(layers: Iterable[str], extremes: Mapping[str, torch.Tensor]) -> list[str]:
    """Those that nothing but zeros were seen to enter."""
    return [n for n in layers if (key := f"{n}.input_quantizer") in extremes and not extremes[key].any()]


def refuse(weights: list[str], inputs: list[str], unreached: list[str]) -> None:
    """Raises GateError with a line for each kind of which there are layers."""
    weights, inputs, unreached = ([*dict.fromkeys(names)] for names in (weights, inputs, unreached))  # attention has three
    lines = []
    if weights:
        lines.append(f"quantize: every weight is zero in {_these(weights)}; {_add(weights)}")
    if inputs := [n for n in inputs if n not in weights]:
        lines.append(f"quantize: calibration saw nothing but zeros enter {_these(inputs)}; {_add(inputs)}")
    if unreached:
        lines.append(
            f"quantize: calibration never reached {_these(unreached)}; raise calib.n_steps where the model has several "
            f"backbones, or {_add(unreached)}"
        )
    if lines:
        raise GateError("\n".join(lines))


def check(backbone: torch.nn.Module, layers: list[str], extremes: Mapping[str, torch.Tensor]) -> None:
    """Raises GateError as `refuse` does. `extremes` are of what was observed, if anything was."""
    unreached = [n for n in layers if f"{n}.input_quantizer" not in extremes] if extremes else []
    refuse(zero_weights(backbone, layers), zero_inputs(layers, extremes), unreached)


def _these(layers: list[str]) -> str:
    return f"{layers[0]} (got {len(layers)} such layer{'s' if len(layers) > 1 else ''})"


def _add(layers: list[str]) -> str:
    return f"add {', '.join(layers)} to format.exclude"
