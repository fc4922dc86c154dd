"""Weights rounded once: a backbone that is only to run need not round the same weights in every call."""

from typing import Any

import torch

from diffopt.quantization.block_fake_quant import simulated


def fold(model: torch.nn.Module, device: str = "cpu") -> None:
    """Put in the place of every weight what its quantizer makes of it, and switch that quantizer off; in place.

    `device` is what the model will run on: there a weight is rounded, wherever it lies. Bit for bit the same: modelopt's own
    `mtq.fold_weight` is not, since it rounds in FP32, leaves out what two quantizers round in turn, and puts SVDQuant's
    low-rank part back into what was to be rounded without it. Nothing can be converted, exported or saved from the model then.
    """
    with torch.no_grad(), simulated():
        for layer in model.modules():
            quantizer: Any = getattr(layer, "weight_quantizer", None)
            if quantizer is None or not quantizer.is_enabled:
                continue
            weight: Any = layer.weight
            there = weight.device
            weight.data = quantizer.to(device)(weight.data.to(device)).to(there)
            quantizer.to(there)
            quantizer.disable()
