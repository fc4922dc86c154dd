"""A calibrated backbone with real kernels in the place of what modelopt simulates."""

from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from modelopt.torch.opt.dynamic import DynamicModule
from modelopt.torch.quantization.nn import TensorQuantizer

from diffopt.kernels import blocks
from diffopt.kernels.attention import Fp8Attention
from diffopt.kernels.attention_backend import attach
from diffopt.kernels.fp8 import Fp8Linear
from diffopt.kernels.int8 import Int8Linear
from diffopt.quantization.block_fake_quant import simulated


@dataclass(frozen=True)
class Converted:
    """What became of the quantized layers."""

    kernels: dict[str, int]
    """By format, how many compute by its kernel."""
    left: dict[str, str] = field(default_factory=dict)
    """By name, those that compute in the model's own precision with rounded weights, and why."""
    attention: tuple[str, ...] = ()
    """Names of attention layers whose products are in FP8."""
    attention_left: dict[str, str] = field(default_factory=dict)
    """By name, those whose products were to be and are in the model's precision, and why."""


def convert(model: torch.nn.Module) -> Converted:
    """Put kernels into `model`, a backbone that `checkpoint.restore` gave, in place; modelopt leaves it.

    A layer that no kernel takes falls back to its own precision, its weight as it was rounded, its input as it comes.
    """
    counts: Counter[str] = Counter()
    left: dict[str, str] = {}
    attention = {n: _amax(m) for n, m in model.named_modules() if _enabled(m, "q_bmm_quantizer")}
    for name, layer in [(n, m) for n, m in model.named_modules() if _enabled(m, "weight_quantizer") or hasattr(m, "as_read")]:
        try:
            kind, kernel = _kernel(layer)
        except ValueError as e:
            left[name] = str(e)
            with simulated():
                layer.weight.data = _rounded(layer)
            continue
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, kernel)
        counts[kind] += 1
    _plain(model)
    reasons = {name: reason for name, amax in attention.items() if (reason := _attend(model.get_submodule(name), amax))}
    return Converted(dict(counts), left, tuple(name for name in attention if name not in reasons), reasons)


SHARED = "_shared_quant_states"
"""What modelopt hangs beside the layers of a gated feed forward, such as Z-Image's."""


def _plain(model: torch.nn.Module) -> None:
    """Leave nothing of modelopt's."""
    for module in [m for m in model.modules() if isinstance(m, DynamicModule)]:
        while isinstance(module, DynamicModule):  # SVDQuant's layers are those of another such class
            module.export()
    for module in list(model.modules()):
        for name in [n for n, m in module.named_children() if isinstance(m, TensorQuantizer) or n == SHARED]:
            delattr(module, name)


def _amax(attention: Any) -> torch.Tensor:
    """FP32 [3]: of q, k and v."""
    found = [getattr(attention, f"{x}_bmm_quantizer").amax for x in "qkv"]
    return torch.stack([x.detach().float().reshape(()) for x in found])


def _attend(attention: Any, amax: torch.Tensor) -> str | None:
    """Give an attention layer FP8 products; the reason why it has none."""
    if amax.is_cuda and find_spec("cudnn") is None:
        return "nvidia-cudnn-frontend is not installed: pip install 'diffopt[native]'"
    outs = getattr(attention, "to_out", None)
    after = outs[0] if outs is not None else None
    try:
        attach(attention, Fp8Attention(amax, after.input_scale if isinstance(after, Fp8Linear) else None))
    except ValueError as e:
        return str(e)
    return None


def _rounded(layer: Any) -> torch.Tensor:
    """The weight of a layer that falls back, with all that modelopt computes around it but the rounding of the input.

    On the CPU, where modelopt rounds without the CUDA extension that it takes half a minute to compile.
    """
    device = layer.weight.device
    quantizer, smoothing = layer.weight_quantizer.cpu(), getattr(layer.input_quantizer.cpu(), "pre_quant_scale", None)
    weight: torch.Tensor = quantizer(layer.weight.data.cpu())
    a, b = (getattr(quantizer, f"svdquant_lora_{x}", None) for x in "ab")
    weight = weight if a is None or b is None else weight + b @ a
    return (weight if smoothing is None else weight * smoothing).to(device)


def _enabled(module: Any, quantizer: str) -> bool:
    return bool(getattr(getattr(module, quantizer, None), "is_enabled", False))


def _kernel(layer: Any) -> tuple[str, torch.nn.Module]:
    """Raises ValueError for a layer that no kernel takes."""
    if not isinstance(layer, torch.nn.Linear):
        raise ValueError("it is a convolution, for which there is no kernel")
    weight: Any = layer.weight_quantizer
    entering: Any = layer.input_quantizer
    if hasattr(layer, "as_read") and (blocks.in_blocks(weight) or not weight.is_enabled):
        made = blocks.stored(layer)
        return made.kind, made
    if blocks.in_blocks(weight):
        made = blocks.kernel(layer)
        return made.kind, made
    if not isinstance(weight, TensorQuantizer):
        raise ValueError("no library that is installed multiplies INT4 weights by FP8 inputs")
    if not (isinstance(weight, TensorQuantizer) and isinstance(entering, TensorQuantizer) and entering.is_enabled):
        raise ValueError("its input is not quantized")
    amax = weight.amax, entering.amax
    if weight.block_sizes or entering.block_sizes or None in amax or entering.amax.numel() != 1:
        raise ValueError("its scales are of blocks or found as a tensor passes")
    bits = (weight.num_bits, entering.num_bits)
    if bits == ((4, 3), (4, 3)) and weight.amax.numel() == 1 and entering.pre_quant_scale is None:
        return "fp8", Fp8Linear(layer.weight, layer.bias, *amax)
    if bits == (8, 8):
        return "int8", Int8Linear(layer.weight, layer.bias, *amax, entering.pre_quant_scale)
    raise ValueError(f"there is no kernel for its bits {bits}")
