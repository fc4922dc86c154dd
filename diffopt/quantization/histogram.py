"""How often numbers of each size enter a layer: what ranges of inputs other than their largest are drawn from.

The bins are the same for every input, so that no chunk has to know what another one saw, and what is counted is whole: chunks
can be made by any job in any order, and their sum has the same bytes. modelopt's own HistogramCalibrator takes its bins from
the first batch that it is shown, and could not be added up so.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from diffopt.quantization.block_fake_quant import BLOCK
from diffopt.quantization.extremes import CONVOLUTIONS
from diffopt.quantization.observer import Forward, instead

Histograms = dict[str, torch.Tensor]
"""Quantizer name -> int64 [NUMBERS]: inputs by the number of BF16 that their size rounds to; with `BLOCKS` behind the name
int64 [OCTAVE_PARTS]: the maxima of a linear input's blocks of 16 that are not zero, by their logarithm."""

BLOCKS = ".blocks"
OCTAVES, MANTISSAS = 20, 128
NUMBERS = 2 * OCTAVES * MANTISSAS
"""Of BF16 from 2^-20 up to 2^20, 128 in an octave; what is beyond counts at the end."""
_LOWEST = (127 - OCTAVES) * MANTISSAS
"""2^-20 as BF16 has it in its bits."""
OCTAVE_PARTS, LOW, HIGH = 512, -40.0, 40.0
"""Bins of the maxima, and the powers of 2 that they lie between: those of modelopt 0.47's NVFP4ActHeadroomCalibrator."""


@contextmanager
def counted(backbone: torch.nn.Module) -> Iterator[Histograms]:
    """Count, while the block runs the backbone in full precision, into the mapping that is yielded.

    Of every linear layer and convolution. Siblings that read one tensor share what is counted of it.
    """
    found: Histograms = {}
    last: list[tuple[str, torch.Tensor, dict[str, torch.Tensor]]] = []

    def watched(name: str, module: torch.nn.Module) -> Forward:
        parent, linear, forward = name.rpartition(".")[0], isinstance(module, torch.nn.Linear), module.forward

        def seen(*args: Any, **kwargs: Any) -> Any:
            x = args[0] if args else kwargs["input"]
            if x.numel():
                if not (last and last[0][0] == parent and last[0][1] is x):
                    last[:] = [(parent, x, {"": sizes(x.detach())} | ({BLOCKS: maxima(x.detach())} if linear else {}))]
                for end, more in last[0][2].items():
                    key = f"{name}.input_quantizer{end}"
                    found[key] = found[key] + more if key in found else more
            return forward(*args, **kwargs)

        return seen

    with ExitStack() as stack:
        for name, module in backbone.named_modules():
            if isinstance(module, (torch.nn.Linear, *CONVOLUTIONS)):
                stack.enter_context(instead(module, watched(name, module)))
        yield found
        last.clear()


def sizes(x: torch.Tensor) -> torch.Tensor:
    """int64 [NUMBERS] of a tensor of any shape and floating dtype."""
    bits = x.reshape(-1).abs().to(torch.bfloat16).view(torch.int16).int()
    return torch.bincount((bits - _LOWEST).clamp_(0, NUMBERS - 1), minlength=NUMBERS)


def maxima(x: torch.Tensor) -> torch.Tensor:
    """int64 [OCTAVE_PARTS] of [..., n], which is padded to whole blocks: in the operations of modelopt's calibrator."""
    if short := -x.shape[-1] % BLOCK:
        x = torch.nn.functional.pad(x, (0, short))
    largest = x.reshape(-1, BLOCK).abs().amax(-1).float()
    place = ((torch.log2(largest) - LOW) / (HIGH - LOW) * OCTAVE_PARTS).floor().clamp(0, OCTAVE_PARTS - 1)
    place = torch.where(largest > 0, place, OCTAVE_PARTS).long()
    return torch.bincount(place, minlength=OCTAVE_PARTS + 1)[:OCTAVE_PARTS]


def numbers(many: int = NUMBERS) -> torch.Tensor:
    """FP32 [many]: the numbers of BF16 that are counted, from the smallest."""
    return (torch.arange(many) + _LOWEST).to(torch.int16).view(torch.bfloat16).float()


def merge(parts: list[Histograms]) -> Histograms:
    """Those of all parts together. Raises ValueError when they come from different models."""
    if len({frozenset(p) for p in parts}) != 1:
        raise ValueError("the chunks counted different layers")
    return {name: torch.stack([p[name] for p in parts]).sum(0) for name in sorted(parts[0])}
