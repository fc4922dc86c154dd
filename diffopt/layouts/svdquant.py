"""SVDQuant's factors as vLLM-Omni's `svdquant` takes them: row by row, in BF16, the inputs divided by a smoothing scale.

A layer is y = (x / smooth_factor) W + (x proj_down) proj_up + b, W being code x wscales x wtscale x wcscales. Of the layer that
was scored, y = (x s) W + (x s) A B + b, it is the same where smooth_factor = 1 / s and proj_down = s A. `format.round_scales`
makes all of them numbers of BF16; others are refused. The reader rounds inputs by blocks alone, without the calibrated maximum.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from diffopt.layouts import modelopt
from diffopt.quantization.numbers import numbers as stand_for

Tensors = dict[str, torch.Tensor]

FORMAT = "nvfp4_svdquant"


@dataclass(frozen=True)
class Rows:
    """The layout of a folder for vLLM-Omni, of factors of this rank."""

    rank: int

    def layer(self, quantized: Any, format: str) -> Tensors:
        return rows(quantized, format)

    def config(self, formats: Mapping[str, str], plain: Iterable[str]) -> dict[str, Any]:
        """`quantization_config`. It takes names as parts of names: one that is a part of a quantized layer's is left out, so
        that the layer is whatever its model in vLLM-Omni makes of it."""
        named = [name for name in sorted(plain) if not any(name in layer for layer in formats)]
        about = {"quant_method": "svdquant", "precision": "nvfp4", "rank": self.rank, "act_unsigned": False}
        return {**about, "modules_to_not_convert": named}


def rows(quantized: Any, format: str) -> Tensors:
    """Of a linear layer: qweight INT8 [N, K / 2], the first of two codes in the lower bits, wscales E4M3 [K / 16, N], and in
    BF16 smooth_factor [K], proj_down [K, R], proj_up [N, R], wcscales [N], wtscale [1], bias [N].

    Raises ValueError for another format, and for a number that BF16 does not hold.
    """
    if format != FORMAT:
        raise ValueError(f"it is in {format}, and the layout has SVDQuant alone")
    made = modelopt.layer(quantized, format)
    smoothing, down = made["pre_quant_scale"].float(), made["svdquant_lora_a"].float()
    factors = {
        "smooth_factor": 1 / smoothing,
        "proj_down": (down * smoothing).T,
        "proj_up": made["svdquant_lora_b"],
        "wtscale": made["weight_scale_2"].reshape(1),
        **({"bias": made["bias"]} if "bias" in made else {}),
    }
    found = {name: _held(name, x) for name, x in factors.items()}
    found["wcscales"] = torch.ones(len(made["weight"]), dtype=torch.bfloat16)
    return found | {"qweight": made["weight"].view(torch.int8), "wscales": made["weight_scale"].T.contiguous()}


def _held(name: str, tensor: torch.Tensor) -> torch.Tensor:
    found = tensor.bfloat16().contiguous()
    if not found.float().equal(tensor.float()):
        raise ValueError(
            f"its {name} has numbers that BF16 does not hold; set format.round_scales=true and model.dtype=bfloat16"
        )
    return found


def numbers(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """FP32 [N, K]: what the codes stand for, as a reader takes them."""
    codes = tensors["qweight"].view(torch.uint8)
    outer = tensors["wtscale"].float() * tensors["wcscales"].float()[:, None]
    same = {"weight": codes, "weight_scale": tensors["wscales"].T.contiguous(), "weight_scale_2": torch.ones(())}
    found: torch.Tensor = stand_for(same, FORMAT) * outer
    return found
