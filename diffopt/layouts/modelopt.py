"""The layout of Model-Optimizer's unified checkpoint: what vLLM-Omni, SGLang and TensorRT-LLM load.

`modelopt.torch.export.export_hf_checkpoint` writes the same keys. It is not used: it changes the model that it is given (q, k
and v get other scales, SVDQuant other low-rank parts), runs it for that, and leaves out families that it does not know. What is
written here is what was scored: the codes that simulation stands for, bit for bit.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from modelopt.torch.export.convert_hf_config import convert_hf_quant_config_format
from modelopt.torch.quantization.nn import SequentialQuantizer

from diffopt.kernels import fp8, int4, int8
from diffopt.layouts import WEIGHTS_ALONE
from diffopt.quantization import block_codes
from diffopt.quantization.block_fake_quant import BLOCK, MX_BLOCK
from diffopt.quantization.numbers import packed, unpacked

Tensors = dict[str, torch.Tensor]
"""By the last part of the key."""

ALGORITHM = {
    "fp8": "FP8", "nvfp4": "NVFP4", "nvfp4_svdquant": "NVFP4_SVD", WEIGHTS_ALONE: "W4A16_NVFP4",
    "mxfp8": "MXFP8", "int8": "W8A8_SQ_PER_CHANNEL", "int8_sq": "W8A8_SQ_PER_CHANNEL", "int4_awq": "W4A16_AWQ",
    "w4a8_awq": "W4A8_AWQ",
}  # fmt: skip
"""What the layout calls the formats."""
GROUPS = {"NVFP4": BLOCK, "W4A16_NVFP4": BLOCK, "NVFP4_SVD": BLOCK, "MXFP8": MX_BLOCK}
"""Numbers of a block, where a format has no choice."""
MIXED = "MIXED_PRECISION"


@dataclass(frozen=True)
class Unified:
    """The layout of a folder, of a checkpoint with these blocks and this rank by this modelopt."""

    version: str
    block_size: int | None
    rank: int | None

    def layer(self, quantized: Any, format: str) -> Tensors:
        return layer(quantized, format)

    def config(self, formats: Mapping[str, str], plain: Iterable[str]) -> dict[str, Any]:
        return config(formats, plain, self.version, self.block_size, self.rank)


def layer(quantized: Any, format: str) -> Tensors:
    """Of a linear layer that modelopt has quantized. Raises ValueError for one that the layout cannot say."""
    if (as_read := getattr(quantized, "as_read", None)) is not None:
        return {name: tensor.detach().contiguous().cpu() for name, tensor in as_read.items()}
    found = WRITERS[format](quantized.weight.detach(), quantized.weight_quantizer, quantized.input_quantizer)
    smoothing = getattr(quantized.input_quantizer, "pre_quant_scale", None)
    if smoothing is not None:
        found["pre_quant_scale"] = smoothing.detach().flatten()
    if quantized.bias is not None:
        found["bias"] = quantized.bias.detach()
    return {name: tensor.contiguous().cpu() for name, tensor in found.items()}


def _fp8(weight: torch.Tensor, own: Any, entering: Any) -> Tensors:
    return {
        "weight": fp8.rounded(weight, fp8.LARGEST / _number(own)),
        "weight_scale": _number(own) / fp8.LARGEST,
        "input_scale": _number(entering) / fp8.LARGEST,
    }


def _int8(weight: torch.Tensor, own: Any, entering: Any) -> Tensors:
    amax = own.amax.detach().float().reshape(-1, 1).expand(len(weight), 1)
    return {
        "weight": int8.rounded(weight, int8.inverse(amax)),
        "weight_scale": (amax / int8.LARGEST).flatten(),
        "input_scale": _number(entering) / int8.LARGEST,
    }


def _nvfp4(weight: torch.Tensor, own: Any, entering: Any) -> Tensors:
    codes, small, scale = block_codes.nvfp4_weight(weight, own)
    found = {
        "weight": packed(codes),
        "weight_scale": small,
        "weight_scale_2": scale,
    }
    if entering.is_enabled:
        found["input_scale"] = block_codes.tensor_scale(entering.amax)
    a, b = (getattr(own, f"svdquant_lora_{x}", None) for x in "ab")
    return found if a is None or b is None else found | {"svdquant_lora_a": a.detach(), "svdquant_lora_b": b.detach()}


def _mxfp8(weight: torch.Tensor, own: Any, entering: Any) -> Tensors:
    codes, powers = block_codes.mxfp8(weight)
    return {"weight": codes, "weight_scale": powers}


def _int4(weight: torch.Tensor, own: Any, entering: Any) -> Tensors:
    """Two rows in a byte, the even one in the lower bits."""
    if len(weight) % 2:
        raise ValueError(f"its {len(weight)} outputs are an odd number, and two of them are stored in a byte")
    first = own[0] if isinstance(own, SequentialQuantizer) else own
    made = int4.Int4Linear(weight, None, first.amax)
    codes = (unpacked(made.weight).int() + int4.SMALLEST) & 15
    found = {
        "weight": (codes[::2] | codes[1::2] << 4).to(torch.uint8),
        "weight_scale": made.amax.float() / int4.LARGEST,
    }
    if isinstance(own, SequentialQuantizer):
        found |= {"weight_scale_2": _number(own[1]) / fp8.LARGEST, "input_scale": _number(entering) / fp8.LARGEST}
    return found


def _number(quantizer: Any) -> torch.Tensor:
    """The maximum of a quantizer that has one for its whole tensor: FP32 []."""
    found: torch.Tensor = quantizer.amax.detach().float().reshape(())
    return found


WRITERS = {
    "fp8": _fp8, "int8": _int8, "int8_sq": _int8, "nvfp4": _nvfp4, "nvfp4_svdquant": _nvfp4, WEIGHTS_ALONE: _nvfp4,
    "mxfp8": _mxfp8, "int4_awq": _int4, "w4a8_awq": _int4,
}  # fmt: skip


def config(
    formats: Mapping[str, str], plain: Iterable[str], version: str, block_size: int | None, rank: int | None
) -> dict[str, Any]:
    """`quantization_config` of a backbone whose quantized layers have these formats; `plain` are its other linear layers.

    Their names are read as prefixes by vLLM-Omni and as whole patterns by SGLang. Raises ValueError where one would be taken
    for a quantized layer by either.
    """
    ignored = sorted(plain)
    for name in ignored:
        for quantized in formats:
            if quantized.startswith(name) or fnmatch.fnmatchcase(quantized, name):
                raise ValueError(f"{name} stays in full precision, and is the beginning of {quantized}, which does not")
    algorithms = {ALGORITHM[f] for f in formats.values()}
    described: dict[str, Any]
    if len(algorithms) == 1:
        (algorithm,) = algorithms
        described = {"quant_algo": algorithm} | _group(algorithm, block_size)
        if algorithm == "NVFP4_SVD":
            described["lora_rank"] = rank
    else:
        layers = {n: {"quant_algo": ALGORITHM[f]} | _group(ALGORITHM[f], block_size) for n, f in sorted(formats.items())}
        described = {"quant_algo": MIXED, "quantized_layers": layers}
    described["exclude_modules"] = ignored
    found = convert_hf_quant_config_format({"producer": {"name": "modelopt", "version": version}, "quantization": described})
    groups = {k: v for k, v in described.items() if k == "group_size"}
    return {**found, **groups}


def _group(algorithm: str, block_size: int | None) -> dict[str, int]:
    size = GROUPS.get(algorithm, block_size if "AWQ" in algorithm else None)
    return {"group_size": size} if size else {}
