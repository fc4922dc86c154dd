"""From a layer that modelopt has quantized in blocks to its kernel."""

from typing import Any

import torch

from diffopt.formats import mxfp8, nvfp4
from diffopt.kernels.block_scales import tiled
from diffopt.kernels.int4 import Int4Linear
from diffopt.kernels.kernel import Kernel
from diffopt.kernels.mxfp8 import Mxfp8Linear
from diffopt.kernels.nvfp4 import Nvfp4Linear
from diffopt.quantization import block_codes


def in_blocks(quantizer: Any) -> bool:
    """Whether a layer's weight quantizer is one of blocks, and the only one."""
    return not isinstance(quantizer, torch.nn.Sequential) and bool(getattr(quantizer, "block_sizes", None))


def kernel(layer: Any) -> Kernel:
    """Of a linear layer whose weight is quantized in blocks. Raises ValueError where none takes it."""
    weight, entering = layer.weight_quantizer, layer.input_quantizer
    if not entering.is_enabled:
        if weight.num_bits == 4 and weight.block_sizes.get("type") != "dynamic" and weight.amax is not None:
            return Int4Linear(layer.weight, layer.bias, weight.amax, entering.pre_quant_scale)
        raise ValueError("its input is not quantized")
    rules = [_rule(x) for x in (weight, entering)]
    if rules == [_of(mxfp8.BLOCKS)] * 2 and entering.pre_quant_scale is None:
        return Mxfp8Linear(layer.weight, layer.bias)
    four = _of(nvfp4.BLOCKS)
    if rules[0] in (four, (*four[:2], "static", four[3])) and rules[1] == four and None not in (weight.amax, entering.amax):
        a, b = (getattr(weight, f"svdquant_lora_{x}", None) for x in "ab")
        low_rank = None if a is None or b is None else (a, b)
        coded = block_codes.nvfp4_weight(layer.weight.detach(), weight)
        return Nvfp4Linear(coded, layer.bias, entering.amax, entering.pre_quant_scale, low_rank)
    raise ValueError(f"there is no kernel for its blocks of {weight.block_sizes.get(-1)} numbers of {weight.num_bits} bits")


def stored(layer: Any) -> Kernel:
    """Of a linear layer that came quantized (quantization/adopted.py) and keeps its own codes and scales of blocks.

    Raises ValueError where no kernel takes them.
    """
    own = layer.as_read
    found = {"weight": own["weight"], "bias": layer.bias, "smoothing": getattr(layer.input_quantizer, "pre_quant_scale", None)}
    cls: type[Kernel]
    if "weight_scale_2" in own:
        cls = Nvfp4Linear
        low = {k: getattr(layer.weight_quantizer, f"svdquant_lora_{k[-1]}", None) for k in ("low_rank_a", "low_rank_b")}
        found |= {"weight_scale": own["weight_scale_2"], "input_scale": own["input_scale"], **low}
    elif own["weight_scale"].dtype == torch.uint8:
        cls = Mxfp8Linear
        del found["smoothing"]
    else:
        raise ValueError("its codes are not those that the kernel here has of its weight")
    found["block_scales"] = tiled(own["weight_scale"])
    there = {n: x.detach().to(layer.weight.device) for n, x in found.items() if x is not None}
    return cls.of(layer, there)


def _rule(quantizer: Any) -> tuple[Any, ...]:
    blocks = quantizer.block_sizes or {}
    return quantizer.num_bits, blocks.get(-1), blocks.get("type"), blocks.get("scale_bits")


def _of(rule: dict[str, Any]) -> tuple[Any, ...]:
    blocks = rule["block_sizes"]
    return rule["num_bits"], blocks[-1], blocks["type"], blocks["scale_bits"]
