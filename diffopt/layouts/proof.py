"""Whether a backbone that was read computes what its codes stand for: each layer is written again, and compared."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from diffopt.layouts import modelopt
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.numbers import numbers

Tensors = Mapping[str, torch.Tensor]
LAST_BITS = {torch.float32: 2.0**-20, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
"""Relative: of what a weight's quantizer gives and of the same number by its code, whose last bits are rounded apart."""


def proved(
    backbone: torch.nn.Module, layers: Mapping[str, tuple[str, Tensors]], tick: Callable[[], None]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the layers whose codes and scales would be written otherwise than they were read: first those whose numbers
    are the same all the same, then those whose numbers are not."""
    carried: list[str] = []
    folded: list[str] = []
    for name, (format, tensors) in layers.items():
        layer: Any = backbone.get_submodule(name)
        if not _same(_written(layer, format, tensors), tensors):
            (carried if _rounds_to(layer, format, tensors) else folded).append(name)
        tick()
    return tuple(carried), tuple(folded)


def _written(layer: Any, format: str, tensors: Tensors) -> Tensors:
    """Nothing of FP8 and INT8 by other scales than the layout has."""
    if format in ("fp8", "int8", "int8_sq") and (
        "input_scale" not in tensors or (tensors["weight_scale"].dim() == 0) != (format == "fp8")
    ):
        return {}
    return modelopt.layer(layer, format)


def _same(one: Tensors, other: Tensors) -> bool:
    """Bit for bit, but for the precision of what is in the model's own."""
    return {*one} == {*other} and all(_bits(x).equal(_bits(other[n].to(x.dtype).cpu())) for n, x in one.items())


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8) if x.dim() else x.reshape(1).view(torch.uint8)


def _rounds_to(layer: Any, format: str, tensors: Tensors) -> bool:
    with simulated(), torch.no_grad():
        found = layer.weight_quantizer(layer.weight).float()
    dtype = layer.weight.dtype
    wanted = numbers(tensors, format).to(dtype).float().to(found.device)
    return bool(((found - wanted).abs() <= wanted.abs() * LAST_BITS[dtype]).all())
