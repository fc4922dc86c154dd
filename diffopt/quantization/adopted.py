"""A backbone that came quantized: modelopt's quantizers around the numbers that its codes stand for, with its file's scales.

Each layer has the tensors that `layouts/modelopt.py` names, whatever the file had. Its weight is set to what the codes stand
for, and its quantizer to the maximum that the scale was made of: rounded again it is the same codes. NVFP4 and MXFP8 find the
scales of blocks anew, and those of a file can be others: `Adopted.folded` are layers of which the numbers would change, so
that their weights stay as they are, and `Adopted.carried` those of which the codes alone would. Both are written as they came.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.quantization.conversion import create_and_replace_svdquant_linear_on_the_fly
from modelopt.torch.quantization.nn import SequentialQuantizer

from diffopt import formats
from diffopt.files.checkpoint import CheckpointFile
from diffopt.formats.method import Rule
from diffopt.pipeline.original import fill
from diffopt.quantization.awq_svdquant import add_mode
from diffopt.quantization.block_codes import tensor_scale
from diffopt.quantization.block_fake_quant import E2M1_MAX, E4M3_MAX, simulated
from diffopt.quantization.numbers import FOUR_BITS, int4, numbers
from diffopt.quantization.rules import rule

Tensors = Mapping[str, torch.Tensor]
"""Of one layer, by the last part of the key."""

EIGHT_BITS = 127.0
ATTENTION = ("q_bmm_quantizer", "k_bmm_quantizer", "v_bmm_quantizer")
ATTENTION_AMAX = "attention_amax"
"""Ends the key of an attention layer's maxima of q, k and v, [3]."""
BY_TOKEN: dict[str, Any] = {"num_bits": (4, 3), "type": "dynamic", "block_sizes": {-1: None}}
"""Inputs in FP8 by a scale of each row, found as it passes; INT8 has the same in 8 bits."""
LAST_BITS = 2.0**-21
"""Relative: of FP32, where a scale is of a 16-bit maximum. A GPU divides by a number by multiplying with its reciprocal, and
what a kernel has is made of two scales."""


def rules(layers: Mapping[str, tuple[str, Tensors]], attention: Iterable[str] = ()) -> list[Rule]:
    """modelopt's, of layers with their formats and tensors, and of attention layers whose products are in FP8."""
    found: list[Rule] = [{"quantizer_name": "*", "enable": False}]
    for name, (format, tensors) in layers.items():
        for which, cfg in zip(("weight", "input"), _attributes(format, tensors), strict=True):
            if cfg is not None:
                found.append({"quantizer_name": f"{name}.{which}_quantizer", "parent_class": "nn.Linear", "cfg": cfg})
    for name in attention:
        found += [{"quantizer_name": f"{name}.{q}", "cfg": {"num_bits": (4, 3), "axis": None}} for q in ATTENTION]
    return found


def _attributes(format: str, tensors: Tensors) -> tuple[Any, Any]:
    """Of the weight's quantizer and the input's; None where that is not quantized."""
    method = formats.method(format)
    if format == "fp8":
        rows = tensors["weight_scale"].dim() == 1
        weight = {"num_bits": (4, 3), "axis": 0} if rows else method.weight
        return weight, method.input if "input_scale" in tensors else BY_TOKEN if rows else None
    if format in ("int8", "int8_sq"):
        weight = method.weight if tensors["weight_scale"].dim() else {"num_bits": 8, "axis": None}
        return weight, {"num_bits": 8, "axis": None} if "input_scale" in tensors else BY_TOKEN | {"num_bits": 8}
    scale = tensors["weight_scale"]
    inputs = tensors["weight"].shape[1]
    return method.weight_rule(inputs // scale.shape[1] if method.block_size else None), method.input


def put(
    model: Any, rules: list[Rule], layers: Mapping[str, tuple[str, Tensors]], attention: Mapping[str, torch.Tensor]
) -> None:
    """Quantize `model` in place, of whose layers the weights are numbers already; `attention` has the maxima of q, k and v."""
    svdquant = any(format == "nvfp4_svdquant" for format, _ in layers.values())
    with torch.no_grad(), simulated():
        mtq.quantize(model, {"quant_cfg": rules, "algorithm": None})
        if svdquant:
            create_and_replace_svdquant_linear_on_the_fly(model)
        for name, (format, tensors) in layers.items():
            _scale(model.get_submodule(name), format, tensors)
        for name, amax in attention.items():
            for quantizer, value in zip(ATTENTION, amax, strict=True):
                getattr(model.get_submodule(name), quantizer).amax = value
        if ranks := [len(tensors["svdquant_lora_a"]) for _, tensors in layers.values() if "svdquant_lora_a" in tensors]:
            add_mode(model, {"method": "svdquant", "lowrank": max(ranks)})


def _scale(layer: Any, format: str, tensors: Tensors) -> None:
    """Give a layer's quantizers what its file says."""
    weight, entering = layer.weight_quantizer, layer.input_quantizer
    device, dtype = layer.weight.device, layer.weight.dtype
    tensors = {n: x.to(device) for n, x in tensors.items()}
    if "pre_quant_scale" in tensors:
        entering._enable_pre_quant_scale = True
        entering.pre_quant_scale = tensors["pre_quant_scale"].to(dtype)
    if "svdquant_lora_a" in tensors:
        weight.svdquant_lora_a = tensors["svdquant_lora_a"].to(dtype)
        weight.svdquant_lora_b = tensors["svdquant_lora_b"].to(dtype)
    if format == "mxfp8":
        return
    if format in ("nvfp4", "nvfp4_svdquant"):
        weight.amax = maximum(tensors["weight_scale_2"], E2M1_MAX * E4M3_MAX, dtype, tensor_scale)
        entering.amax = maximum(tensors["input_scale"], E2M1_MAX * E4M3_MAX, dtype, tensor_scale)
        return
    scale = tensors["weight_scale"].float()
    first, largest = weight, EIGHT_BITS if format.startswith("int8") else E4M3_MAX
    if format in ("int4_awq", "w4a8_awq"):
        if isinstance(weight, SequentialQuantizer):
            first = weight[0]
            weight[1].amax = maximum(tensors["weight_scale_2"], E4M3_MAX, dtype)
        first.amax = maximum(scale, FOUR_BITS, dtype).float().reshape(-1, 1)
        largest = E4M3_MAX
    else:
        found = maximum(scale, largest, dtype)
        first.amax = found.reshape(-1, 1) if found.dim() else found
    if "input_scale" in tensors and format != "int4_awq":
        entering.amax = maximum(tensors["input_scale"], largest, dtype)


def maximum(
    scale: torch.Tensor, largest: float, dtype: torch.dtype, back: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:
    """The calibrated maxima that these FP32 scales were made of, of the same shape: in `dtype` where that holds them, else in
    FP32. `back` makes the scale of one; without it a maximum is divided by `largest`."""
    scale = scale.float()
    return solved(scale.double() * largest, back or (lambda amax: amax / largest), scale, dtype)


def solved(
    about: torch.Tensor, back: Callable[[torch.Tensor], torch.Tensor], wanted: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Of numbers near `about` (FP64) those of which `back` makes `wanted`, both FP32: in `dtype` where that holds them."""
    narrow = about.to(dtype)
    if dtype != torch.float32 and bool(((back(narrow.float()) - wanted).abs() <= LAST_BITS * wanted).all()):
        return narrow
    near = found = about.float()
    for steps in (1, -1, 2, -2):
        other = near
        for _ in range(abs(steps)):
            other = torch.nextafter(other, near * 2 if steps > 0 else near * 0)
        found = torch.where((back(found) != wanted) & (back(other) == wanted), other, found)
    return found


def weight(format: str, tensors: Tensors, dtype: torch.dtype) -> torch.Tensor:
    """[out, in] that its quantizers round to its codes; W4A8's is that before the second of its roundings."""
    if format == "w4a8_awq":
        return int4(tensors["weight"], tensors["weight_scale"]).to(dtype)
    return numbers(tensors, format).to(dtype)


def restored(model: torch.nn.Module, head: CheckpointFile, stored: Tensors) -> torch.nn.Module:
    """Make of `model`, whose parameters are on the meta device, what `stored` has, in place; then quantized as it came.

    Raises ValueError, naming it, for a tensor that is not there, that the model has no place for, or of another shape.
    """
    adopted = head.adopted
    assert adopted is not None
    layers = split(stored, {name: (head.mix or {}).get(name, head.format) for name in head.layers})
    attention = {name: stored[f"{name}.{ATTENTION_AMAX}"] for name in adopted.attention}
    plain = {n: x for n, x in stored.items() if n.rpartition(".")[0] not in layers and not n.endswith(f".{ATTENTION_AMAX}")}
    for name, (format, tensors) in layers.items():
        like = own_dtype(model, name)
        plain[f"{name}.weight"] = weight(format, tensors, like)
        plain |= {f"{name}.bias": tensors["bias"]} if "bias" in tensors else {}
    fill(model, plain)
    put(model, [rule(r) for r in head.rules], layers, attention)
    for name in (*adopted.carried, *adopted.folded):
        layer: Any = model.get_submodule(name)
        layer.as_read = dict(layers[name][1])
        if name in adopted.folded:
            layer.weight_quantizer.disable()
            layer.weight.data = numbers(layers[name][1], layers[name][0]).to(layer.weight.dtype)
    return model


def split(stored: Tensors, formats: Mapping[str, str]) -> dict[str, tuple[str, Tensors]]:
    """By layer its format and tensors."""
    own: dict[str, dict[str, torch.Tensor]] = {name: {} for name in formats}
    for key, tensor in stored.items():
        name, _, last = key.rpartition(".")
        if name in own:
            own[name][last] = tensor
    return {name: (formats[name], tensors) for name, tensors in own.items()}


def own_dtype(model: torch.nn.Module, name: str) -> torch.dtype:
    """Of a layer's weight, in a model that was made in its precision."""
    found: Any = model.get_submodule(name).weight
    dtype: torch.dtype = found.dtype
    return dtype
