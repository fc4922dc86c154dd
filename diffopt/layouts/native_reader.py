"""A native pack, as `export=native` writes it: the buffers of kernels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diffopt.files.native import NativeFile
from diffopt.kernels import int8
from diffopt.kernels.block_scales import straight
from diffopt.kernels.fp8 import LARGEST
from diffopt.kernels.int4 import SMALLEST
from diffopt.layouts.names import Names
from diffopt.layouts.read import Read, Tensors, opened
from diffopt.quantization.adopted import EIGHT_BITS, solved
from diffopt.quantization.block_fake_quant import BLOCK, MX_BLOCK
from diffopt.quantization.numbers import FOUR_BITS, unpacked


def read(path: Path, backbone: Any, names: Names | None) -> Read:
    """What `export=native` packs: the buffers of kernels."""
    head = NativeFile.of(json.loads((path / NativeFile.NAME).read_text(encoding="utf-8")))
    own: dict[str, Tensors] = {name: {} for name in head.layers}
    plain: Tensors = {}
    for key, tensor in opened(sorted(path.glob("*.safetensors"))).items():
        name, _, last = key.rpartition(".")
        if name in own:
            own[name][last] = tensor
        else:
            plain[key] = tensor
    layers, attention = {}, {}
    for name, kind in head.layers.items():
        if kind == "fp8_attention":
            inverse, dtype = _of(own[name], "inverse", name), getattr(torch, head.dtype)
            attention[name.rpartition(".")[0]] = solved(LARGEST / inverse.double(), lambda a: LARGEST / a, inverse, dtype)
            continue
        layers[name] = KERNELS[kind](own[name], name)
    return Read(layers, plain, attention)


def _of(tensors: Tensors, key: str, name: str) -> torch.Tensor:
    if key not in tensors:
        raise ValueError(f"{name} has no {key}")
    return tensors[key]


def _bias(own: Tensors) -> Tensors:
    found = {"bias": own["bias"]} if "bias" in own else {}
    return found | ({"pre_quant_scale": own["smoothing"]} if "smoothing" in own else {})


def _fp8(own: Tensors, name: str) -> tuple[str, Tensors]:
    return "fp8", {k: _of(own, k, name) for k in ("weight", "weight_scale", "input_scale")} | _bias(own)


def _int8(own: Tensors, name: str) -> tuple[str, Tensors]:
    """A kernel has the inverse of the input's scale, and the product of both."""
    inverse, scale = _of(own, "inverse", name), _of(own, "scale", name)
    dtype = next((own[k].dtype for k in ("smoothing", "bias") if k in own), torch.float32)
    amax = solved(EIGHT_BITS / inverse.double(), int8.inverse, inverse, dtype).float()
    entering = amax / EIGHT_BITS
    weight = solved(scale.double() / entering * EIGHT_BITS, lambda a: a / EIGHT_BITS * entering, scale, dtype).float()
    found = {"weight": _of(own, "weight", name), "weight_scale": weight / EIGHT_BITS, "input_scale": entering}
    return "int8_sq" if "smoothing" in own else "int8", found | _bias(own)


def _int4(own: Tensors, name: str) -> tuple[str, Tensors]:
    amax = _of(own, "amax", name).float()
    codes = (unpacked(_of(own, "weight", name)).int() + SMALLEST) & 15
    packed = (codes[::2] | codes[1::2] << 4).to(torch.uint8)
    return "int4_awq", {"weight": packed, "weight_scale": amax / FOUR_BITS} | _bias(own)


def _nvfp4(own: Tensors, name: str) -> tuple[str, Tensors]:
    weight = _of(own, "weight", name)
    rows, blocks = len(weight), 2 * weight.shape[1] // BLOCK
    found = {
        "weight": weight,
        "weight_scale": straight(_of(own, "block_scales", name), rows, blocks),
        "weight_scale_2": _of(own, "weight_scale", name),
        "input_scale": _of(own, "input_scale", name),
    }
    if "low_rank_a" not in own:
        return "nvfp4", found | _bias(own)
    low = {"svdquant_lora_a": own["low_rank_a"], "svdquant_lora_b": _of(own, "low_rank_b", name)}
    return "nvfp4_svdquant", found | low | _bias(own)


def _mxfp8(own: Tensors, name: str) -> tuple[str, Tensors]:
    weight = _of(own, "weight", name)
    scale = straight(_of(own, "block_scales", name), len(weight), weight.shape[1] // MX_BLOCK)
    return "mxfp8", {"weight": weight, "weight_scale": scale} | _bias(own)


KERNELS: dict[str, Callable[[Tensors, str], tuple[str, Tensors]]] = {
    "fp8": _fp8, "int8": _int8, "int4": _int4, "nvfp4": _nvfp4, "mxfp8": _mxfp8,
}  # fmt: skip
