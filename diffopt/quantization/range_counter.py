"""Counting, while a simulated backbone draws, how often inputs leave the ranges that its quantizers were calibrated for.

Nothing is counted, and nothing costs, outside of `counted`: timing is done without.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from diffopt.files.ranges import InputRange
from diffopt.quantization.extremes import quantizers
from diffopt.quantization.rounding import Rounding
from diffopt.quantization.tally import SUMS, Tally


@contextmanager
def counted(backbones: Mapping[str, torch.nn.Module]) -> Iterator[Callable[[], list[InputRange]]]:
    """Count while the block runs; yields what gives the counts, in the order of the modules, empty without static ranges.

    `backbones` by their pipeline's names for them, which begin the layers' names where there are several. They must not be
    compiled yet: their blocks are compiled with what counts in them.
    """
    found: dict[str, Tally] = {}
    with ExitStack() as stack:
        for backbone, module in backbones.items():
            prefix = f"{backbone}." if len(backbones) > 1 else ""
            for name, part in _counting(module, stack):
                found[prefix + name] = part
        yield lambda: [_read(name, tally) for name, tally in found.items() if tally.sums[0]]


def _counting(module: torch.nn.Module, stack: ExitStack) -> Iterator[tuple[str, Tally]]:
    """The tallies of one backbone, by layer. modelopt's quantizers are hooked, and roundings have a place for one."""
    for name, quantizer in quantizers(module):
        place, _, kind = name.rpartition(".")
        static = quantizer.is_enabled and quantizer.amax is not None and not quantizer.is_mx_format
        if static and (kind == "input_quantizer" or kind.endswith("_bmm_quantizer")):
            tally = Tally(quantizer.amax)
            stack.callback(quantizer.register_forward_hook(_hook(tally)).remove)
            yield place if kind == "input_quantizer" else name.removesuffix("_quantizer"), tally
    for name, part in module.named_modules():
        if isinstance(part, Rounding) and part.range is not None:
            part.tally = Tally(part.range)
            stack.callback(_forget, part)
            place, _, operand = name.partition(".rounded_operands.each.")
            yield f"{place}.{'qkv'[int(operand)]}_bmm" if operand else name.removesuffix(".entering"), part.tally


def _forget(part: Rounding) -> None:
    part.tally = None


def _hook(tally: Tally) -> Callable[..., None]:
    def seen(quantizer: Any, given: tuple[torch.Tensor], rounded: torch.Tensor) -> None:
        (values,) = given
        smoothing = quantizer.pre_quant_scale  # None where the layer has multiplied by it already, as SVDQuant's does
        if values.numel():
            count = tally if values.is_cuda else tally.on_cpu
            count(values if smoothing is None else values * smoothing, rounded)

    return seen


def _read(name: str, tally: Tally) -> InputRange:
    sums = dict(zip(SUMS, tally.sums.tolist(), strict=True))
    whole = {k: int(sums[k]) for k in ("calls", "calls_beyond", "values", "beyond")}
    return InputRange(
        name, **whole, peak=float(tally.peak), energy=sums["energy"], error=sums["error"], clipped=sums["clipped"]
    )
