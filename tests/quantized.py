"""modelopt's quantizer attributes of the formats, put on any model."""

import copy
from typing import Any

import modelopt.torch.quantization as mtq
import torch

from diffopt.quantization.block_fake_quant import simulated

E4M3: dict[str, Any] = {"num_bits": (4, 3), "axis": None}
INT4: dict[str, Any] = {"num_bits": 4, "block_sizes": {-1: 32, "type": "static"}}
FP4: dict[str, Any] = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}, "axis": None}
MX: dict[str, Any] = {"num_bits": (4, 3), "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}}
AWQ = {"method": "awq_lite", "alpha_step": 0.5}

FORMATS: dict[str, tuple[Any, Any, Any]] = {
    "int8": ({"num_bits": 8, "axis": 0}, {"num_bits": 8, "axis": None}, "max"),
    "int8_sq": ({"num_bits": 8, "axis": 0}, {"num_bits": 8, "axis": -1}, {"method": "smoothquant", "alpha": 0.5}),
    "fp8": (E4M3, E4M3, "max"),
    "int4_awq": (INT4, None, AWQ),
    "w4a8_awq": ([INT4, E4M3], E4M3, AWQ),
    "nvfp4": (FP4, FP4, "max"),
    "nvfp4_svdquant": (FP4, FP4, {"method": "svdquant", "lowrank": 8}),
    "mxfp8": (MX, MX, None),
}
"""Weight quantizer, input quantizer (None: off) and algorithm."""


def quantize(model: torch.nn.Module, name: str, kinds: tuple[str, ...], keep: tuple[str, ...], loop: Any) -> int:
    """Quantize layers of the classes `kinds` (nn.Linear, nn.Conv2d) in place; how many weights are quantized then.

    `keep` are globs of modules left alone, `loop` calls the model.
    """
    weight, inputs, algorithm = FORMATS[name]
    rules: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for kind in kinds:
        convolution = kind != "nn.Linear" and name == "int8_sq"
        rules.append({"quantizer_name": "*weight_quantizer", "parent_class": kind, "cfg": copy.deepcopy(weight)})
        if inputs:
            cfg = copy.deepcopy(FORMATS["int8"][1] if convolution else inputs)
            rules.append({"quantizer_name": "*input_quantizer", "parent_class": kind, "cfg": cfg})
    rules += [{"quantizer_name": f"{k}.*", "enable": False} for k in keep]
    with torch.no_grad(), simulated():
        mtq.quantize(model, {"quant_cfg": rules, "algorithm": copy.deepcopy(algorithm)}, loop)
    quantizers = [getattr(m, "weight_quantizer", None) for m in model.modules()]
    return sum(q is not None and (q[0] if isinstance(q, torch.nn.Sequential) else q).is_enabled for q in quantizers)
