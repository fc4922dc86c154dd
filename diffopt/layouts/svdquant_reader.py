"""SVDQuant's factors in a folder, as vLLM-Omni (`svdquant`) and diffusers (`nunchaku_lite`) take them; svdquant.py writes them.

Neither has a scale of the inputs' tensor: their readers round inputs by blocks alone, as one of 1 does.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diffopt.layouts import nunchaku
from diffopt.layouts.names import Names
from diffopt.layouts.read import Read, Tensors, opened
from diffopt.layouts.svdquant import FORMAT

PARTS = ("qweight", "wscales", "smooth_factor", "proj_down", "proj_up", "wtscale", "wcscales", "bias")


def read(path: Path, backbone: Any, names: Names | None) -> Read:
    """A layer is one that has a `qweight`."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if (found := config.get("_class_name")) != type(backbone).__name__:
        raise ValueError(f"{path.name} is a {found}, and the model's is a {type(backbone).__name__}")
    lanes = config["quantization_config"]["quant_method"] == "nunchaku_lite"
    there = opened(sorted(path.glob("*.safetensors")))
    own: dict[str, Tensors] = {n.removesuffix(".qweight"): {} for n in there if n.endswith(".qweight")}
    plain: Tensors = {}
    for key, tensor in there.items():
        name, _, last = key.rpartition(".")
        if name in own:
            own[name][last] = tensor
        else:
            plain[key] = tensor
    return Read({name: (FORMAT, _layer(name, tensors, lanes)) for name, tensors in own.items()}, plain)


def _layer(name: str, tensors: Tensors, lanes: bool) -> Tensors:
    """The inverse of `svdquant.rows`, and before it of `nunchaku.packed`."""
    if lacking := [k for k in PARTS if k not in tensors and k not in ("bias", "wcscales")]:
        raise ValueError(f"{name} has no {lacking[0]}")
    if strange := sorted({*tensors} - {*PARTS}):
        raise ValueError(f"{name} has a {strange[0]}, which the layout has not")
    try:
        rows = unpacked(tensors) if lanes else tensors
    except RuntimeError:
        raise ValueError(
            f"{name} is not in the order of Nunchaku's lanes: its qweight is {list(tensors['qweight'].shape)}"
        ) from None
    if "wcscales" in rows and not bool((rows["wcscales"] == 1).all()):
        raise ValueError(f"{name} has a scale of each output (wcscales), which is not read")
    smooth = rows["smooth_factor"].float()
    found = {
        "weight": rows["qweight"].view(torch.uint8),
        "weight_scale": rows["wscales"].T.contiguous(),
        "weight_scale_2": rows["wtscale"].float().reshape(()),
        "input_scale": torch.ones(()),
        "pre_quant_scale": (1 / smooth).to(rows["smooth_factor"].dtype),
        "svdquant_lora_a": (rows["proj_down"].T.float() * smooth).to(rows["proj_down"].dtype).contiguous(),
        "svdquant_lora_b": rows["proj_up"],
    }
    return found | ({"bias": rows["bias"]} if "bias" in rows else {})


def unpacked(lanes: Tensors) -> Tensors:
    """The inverse of `nunchaku.packed`. Raises RuntimeError for lengths that it does not take."""
    (depth, rank), out = lanes["proj_down"].shape, len(lanes["proj_up"])
    scales = lanes["wscales"]
    registers = _back(scales.reshape(-1).view(torch.int32), _scales, (out, depth // 64))
    found = {
        "qweight": _back(lanes["qweight"].view(torch.int32), _codes, (out, depth // 8)).view(torch.int8),
        "wscales": registers.view(scales.dtype).T.contiguous(),
        "proj_down": _back(lanes["proj_down"], nunchaku.low_rank, (rank, depth)).T.contiguous(),
        "proj_up": _back(lanes["proj_up"], lambda x: nunchaku.low_rank(x, across=False), (out, rank)),
        "wtscale": lanes["wtscale"],
    }
    vectors = [k for k in ("smooth_factor", "wcscales", "bias") if k in lanes]
    return found | {k: _back(lanes[k], nunchaku.vector, (len(lanes[k]),)) for k in vectors}


def _codes(registers: torch.Tensor) -> torch.Tensor:
    return nunchaku.codes(registers.view(torch.int8)).view(torch.int32)


def _scales(registers: torch.Tensor) -> torch.Tensor:
    return nunchaku.block_scales(registers.view(torch.int8).T).reshape(-1).view(torch.int32)


def _back(packed: torch.Tensor, pack: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """Of this shape, each number where it was: the packing itself is asked where it puts numbers that say where they are."""
    places = pack(torch.arange(packed.numel(), dtype=torch.int32).reshape(shape))
    found = torch.empty(packed.numel(), dtype=packed.dtype)
    found[places.reshape(-1).long()] = packed.reshape(-1)
    return found.reshape(shape)
