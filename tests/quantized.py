"""modelopt's quantizer attributes of the formats, and their arithmetic on a CPU."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import modelopt.torch.quantization as mtq
import modelopt.torch.quantization.tensor_quant as tensor_quant
import torch

from diffopt import block_arithmetic

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


@contextmanager
def simulated() -> Iterator[None]:
    """`block_arithmetic.simulated`, and MXFP8 by its definition."""
    with block_arithmetic.simulated():
        inner = tensor_quant.dynamic_block_quantize_op

        def dispatch(x: torch.Tensor, block: int, amax: Any, *bits: int) -> torch.Tensor:
            if (block, *bits) != (32, 8, 4, 9, 8):
                return inner(x, block, amax, *bits)  # type: ignore[no-any-return]
            blocks = x.float().unflatten(-1, (-1, block))
            peak = blocks.abs().amax(-1, keepdim=True)
            scale = torch.exp2(torch.ceil(torch.log2((peak / 448).clamp_min(2.0**-126))))
            return ((blocks / scale).to(torch.float8_e4m3fn).float() * scale).flatten(-2).to(x.dtype)

        tensor_quant.dynamic_block_quantize_op = dispatch
        try:
            yield
        finally:
            tensor_quant.dynamic_block_quantize_op = inner


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
