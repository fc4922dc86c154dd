"""Whether what was read of a layer is what its format has, of the layer's own sizes."""

from collections.abc import Mapping
from typing import Any

import torch

from diffopt.quantization.block_fake_quant import BLOCK, MX_BLOCK

Tensors = dict[str, torch.Tensor]
E4M3, U8, F32 = torch.float8_e4m3fn, torch.uint8, torch.float32
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def fitted(format: str, tensors: Mapping[str, torch.Tensor], layer: Any) -> Tensors:
    """The tensors, scales in FP32 and without an axis of length 1. Raises ValueError for one that is not there, that the format
    has not, or of another type or shape than the linear `layer` has."""
    if not isinstance(layer, torch.nn.Linear):
        raise ValueError("is no linear layer of the model")
    found = {name: _narrowed(name, x) for name, x in tensors.items()}
    wanted, spare = _needed(format, layer, found)
    for name, (dtypes, shape) in (wanted | spare).items():
        if name not in found:
            if name in wanted:
                raise ValueError(f"has no {name}")
            continue
        x = found[name]
        if (
            x.dtype not in dtypes
            or len(x.shape) != len(shape)
            or any(m not in (None, n) for n, m in zip(x.shape, shape, strict=True))
        ):
            want = ["any" if n is None else n for n in shape]
            raise ValueError(
                f"has a {name} of {list(x.shape)} in {str(x.dtype).removeprefix('torch.')}, where {format} has one of "
                f"{str(want).replace(chr(39), '')} in {str(dtypes[0]).removeprefix('torch.')}"
            )
        if x.dtype in FLOATS and not torch.isfinite(x).all():
            raise ValueError(f"has a {name} with inf or NaN in it")
    if strange := sorted({*found} - {*wanted} - {*spare}):
        raise ValueError(f"has a {strange[0]}, which {format} has not")
    return found


def _narrowed(name: str, x: torch.Tensor) -> torch.Tensor:
    if name == "weight_scale" and x.dtype == torch.float8_e8m0fnu:
        return x.view(U8)
    if name not in ("weight_scale", "weight_scale_2", "input_scale") or x.dtype not in FLOATS:
        return x.flatten() if name == "pre_quant_scale" else x
    x = x.float()
    return x.reshape(()) if x.numel() == 1 and name != "weight_scale" else x


def _needed(format: str, layer: torch.nn.Linear, found: Tensors) -> tuple[dict[str, Any], dict[str, Any]]:
    """By name types and lengths: of what must be there, and of what may."""
    out, depth, one = layer.out_features, layer.in_features, ((F32,), ())
    scale = found.get("weight_scale", torch.zeros(()))
    if format in ("fp8", "int8", "int8_sq") and scale.dim() and scale.numel() in (1, out):
        found["weight_scale"] = scale = scale.reshape(()) if scale.numel() == 1 and out > 1 else scale.flatten()
    rows = ((F32,), (out,) if scale.dim() else ())
    known: dict[str, dict[str, Any]] = {
        "fp8": {"weight": ((E4M3,), (out, depth)), "weight_scale": rows},
        "int8": {"weight": ((torch.int8,), (out, depth)), "weight_scale": rows},
        "mxfp8": {"weight": ((E4M3,), (out, depth)), "weight_scale": ((U8,), (out, depth // MX_BLOCK))},
        "nvfp4": {
            "weight": ((U8,), (out, depth // 2)),
            "weight_scale": ((E4M3,), (out, depth // BLOCK)),
            "weight_scale_2": one,
            "input_scale": one,
        },
        "int4": {"weight": ((U8,), (out // 2, depth)), "weight_scale": ((F32,), (out, None))},
    }
    wanted = known[{"int8_sq": "int8", "nvfp4_svdquant": "nvfp4", "int4_awq": "int4", "w4a8_awq": "int4"}.get(format, format)]
    spare: dict[str, Any] = {"input_scale": one} if format in ("fp8", "int8", "int8_sq") else {}
    smoothing = {"pre_quant_scale": (FLOATS, (depth,))}
    if format in ("int8_sq", "nvfp4_svdquant", "int4_awq", "w4a8_awq"):
        wanted |= smoothing
    elif format == "nvfp4":
        spare |= smoothing
    if format == "nvfp4_svdquant":
        wanted |= {"svdquant_lora_a": (FLOATS, (None, depth)), "svdquant_lora_b": (FLOATS, (out, None))}
    if format == "w4a8_awq":
        wanted |= {"weight_scale_2": one, "input_scale": one}
    (wanted if layer.bias is not None else spare)["bias"] = (FLOATS, (out,))
    return wanted, spare
