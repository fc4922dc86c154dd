"""GPTQ (arXiv 2210.17323): a weight rounded column by column, where the columns that are not rounded yet make good what those
before lost in the layer's output.

What a column's error does to the output, and which others can undo it, the mean of x x' over the layer's inputs x tells, which
modelopt 0.47 collects and inverts (`GPTQHelper`, `compute_hessian_inverse`). It is as wide as the input, 900 MiB for FLUX.1's
widest, so that it is no part of a calibration: recorded inputs of the backbone are replayed, for as many layers at a time as
there is room.

Scales stay as they were found. modelopt's own are those of maxima, and its damping is 1%: of few prompts that loses more than
rounding to the nearest, since the directions in which those inputs do not vary are free to it, and others vary there.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from modelopt.torch.quantization.conversion import set_quantizer_by_cfg_context
from modelopt.torch.quantization.utils.calib_utils import GPTQHelper, compute_hessian_inverse

from diffopt.errors import GateError
from diffopt.quantization import grid
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.weight_scales import ROUNDED, Found, blocks

log = logging.getLogger("diffopt")

AT_ONCE = 128
"""Columns after which the rest of the weight is brought up to date, as modelopt does by default."""
ON_CPU, ON_GPU = 4 << 30, 16 << 30
"""Room for what is collected at once, in bytes: of a GPU half of what is free, where that is less."""


class Gptq:
    """Of a quantized model that has its scales, whose weights stay as they are meanwhile."""

    def __init__(self, model: torch.nn.Module, damping: float):
        """`damping` is the share of the mean of the diagonal that is added to it."""
        self.damping = damping
        self._model = model
        self._turns = [*_turns(dict(blocks(model)), _room(next(model.parameters()).device))]

    @property
    def passes(self) -> int:
        """How often the inputs are to be replayed."""
        return len(self._turns)

    @torch.no_grad()
    def __call__(self, loop: Callable[[torch.nn.Module], None]) -> Found:
        """By layer the codes of its weight, UINT8 [out, in / 2], on the CPU; `loop` shows the model its inputs."""
        found: Found = {}
        off = [{"quantizer_name": "*weight_quantizer", "enable": False}]
        with simulated():
            for layers in self._turns:
                seen = {name: GPTQHelper(layer, name) for name, layer in layers.items()}
                for helper in seen.values():
                    helper.setup()
                with set_quantizer_by_cfg_context(self._model, off):
                    loop(self._model)
                for name, helper in seen.items():
                    helper.cleanup()
                    found[f"{name}.weight_quantizer{ROUNDED}"] = _codes(name, layers[name], helper.hessian, self.damping).cpu()
                    helper.free()
        return found


def _codes(name: str, layer: Any, hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Raises GateError where inf or NaN reached the layer."""
    weight, entering = layer.weight.detach().float().clone(), layer.input_quantizer
    own, hessian = grid.of(layer), hessian.to(weight.device)
    if not entering.is_enabled and entering.pre_quant_scale is not None:  # which modelopt leaves out of what it collects
        scale = entering.pre_quant_scale.float().flatten()
        hessian = hessian * scale[:, None] * scale
    if not torch.isfinite(hessian.diagonal()).all():
        raise GateError(f"quantize: inf or NaN reached {name} (got no sums of its inputs); set another model.dtype")
    inverse = compute_hessian_inverse(hessian, weight, damping)
    if not inverse.triu(1).any():  # of nothing, or where no factor is found, modelopt's is the identity
        log.info(
            "note: %s is rounded to the nearest: what reaches it in calibration has no inverse; raise format.damping", name
        )
    for start in range(0, weight.shape[1], AT_ONCE):
        end = start + AT_ONCE
        part, within = weight[:, start:end].clone(), inverse[start:end, start:end]
        errors = torch.zeros_like(part)
        for i in range(part.shape[1]):
            rounded = own.column(part[:, i], start + i)
            error = (part[:, i] - rounded) / within[i, i]
            part[:, i:].addr_(error, within[i, i:], alpha=-1)
            errors[:, i], weight[:, start + i] = error, rounded
        weight[:, end:].addmm_(errors, inverse[start:end, end:], alpha=-1)
    return own.codes(weight)


def _turns(layers: dict[str, Any], room: int) -> Iterator[dict[str, Any]]:
    """The layers in order, as many at a time as have room, and one at least."""
    turn: dict[str, Any] = {}
    taken = 0
    for name, layer in layers.items():
        needed = 4 * layer.weight.shape[1] ** 2
        if turn and taken + needed > room:
            yield turn
            turn, taken = {}, 0
        turn[name] = layer
        taken += needed
    if turn:
        yield turn


def _room(device: torch.device) -> int:
    return min(ON_GPU, torch.cuda.mem_get_info(device)[0] // 2) if device.type == "cuda" else ON_CPU
