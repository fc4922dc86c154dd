"""ComfyUI's layout: one file of the backbone under its makers' names, and beside each quantized layer what it is quantized to.

The tensors are as its QUANTIZATION.md and `comfy/ops.py` have them. NVFP4 and MXFP8 have their scales in tiles, and of two
NVFP4 codes in a byte the first is the higher: otherwise than in Model-Optimizer's layout. Where q, k and v are one layer there,
they have one scale, and are refused with several.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from diffopt.kernels.block_scales import ACROSS, ROWS, tiled
from diffopt.layouts import COMFYUI, NAMED, flux_names, modelopt

MARK = "comfy_quant"
NAMES = {NAMED["flux"]: flux_names}
"""By the class of a backbone, its makers' names."""
MULTIPLE = 16
"""What both lengths of an NVFP4 weight are, there; others would be padded."""

Tensors = dict[str, torch.Tensor]


def write(file: Path, backbone: Any, formats: Mapping[str, str]) -> int:
    """Write a backbone as `checkpoint.restore` gave it, which stays as it is; the bytes of its tensors.

    `formats` are its quantized layers'. Raises ValueError, naming the layer, for what ComfyUI does not read.
    """
    if (names := NAMES.get(type(backbone).__name__)) is None:
        raise ValueError(f"{type(backbone).__name__} has no table of ComfyUI's names here; {', '.join(NAMES)} has one")
    linear = {n for n, m in backbone.named_modules() if isinstance(m, torch.nn.Linear)}
    left = {n: x for n, x in backbone.state_dict().items() if "_quantizer." not in n}
    found: Tensors = {}
    for there, ours in names.layers(linear).items():
        found |= {f"{there}.{key}": x for key, x in _joined(backbone, ours, formats).items()}
        left = {n: x for n, x in left.items() if n.rpartition(".")[0] not in ours}
    for name, tensor in left.items():
        if (there := names.norms(name)) is None:
            raise ValueError(f"{name} has no name in ComfyUI's layout")
        found[there] = tensor
    own = {name: x.detach().cpu().contiguous().clone() for name, x in found.items()}
    save_file(own, file, metadata={"format": "pt"})
    return sum(x.nbytes for x in own.values())


def _joined(backbone: Any, ours: tuple[str, ...], formats: Mapping[str, str]) -> Tensors:
    """Of layers of diffusers that are one there, one under the other."""
    kinds = {formats.get(name) for name in ours}
    if len(kinds) > 1:
        raise ValueError(f"{ours[0]} and {ours[-1]} are one layer for ComfyUI, and have different formats here")
    (kind,) = kinds
    layers = [backbone.get_submodule(name) for name in ours]
    if kind is None:
        parts = [{n: x.detach() for n, x in layer.named_parameters(recurse=False)} for layer in layers]
        found = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        return {n: torch.cat(x.chunk(2)[::-1]) for n, x in found.items()} if ours == (flux_names.SWAPPED,) else found
    if kind not in COMFYUI:
        raise ValueError(f"{ours[0]} is in {kind}, which ComfyUI does not read; it reads {', '.join(COMFYUI)}")
    written = [modelopt.layer(layer, kind) for layer in layers]
    for key in ("weight_scale", "weight_scale_2", "input_scale"):
        same = [part[key] for part in written if key in part and part[key].dim() == 0]
        if not all(x.equal(same[0]) for x in same):
            raise ValueError(
                f"{ours[0]} and {ours[-1]} are one layer for ComfyUI, with one scale; set format.share_scales=true"
            )
    first = written[0]
    found = {key: x if x.dim() == 0 else torch.cat([part[key] for part in written]) for key, x in first.items()}
    mark = json.dumps({"format": COMFYUI[kind]}).encode()
    return _arranged(found, kind, ours[0]) | {MARK: torch.frombuffer(bytearray(mark), dtype=torch.uint8)}


def _arranged(tensors: Tensors, kind: str, name: str) -> Tensors:
    if kind == "fp8":
        return tensors
    scale, weight = tensors["weight_scale"], tensors["weight"]
    rows, blocks = scale.shape
    within = tiled(scale).reshape(-(-rows // ROWS) * ROWS, -(-blocks // ACROSS) * ACROSS)
    if kind == "mxfp8":
        return tensors | {"weight_scale": within.view(torch.float8_e8m0fnu)}
    if len(weight) % MULTIPLE:
        raise ValueError(f"{name} has {len(weight)} outputs, not a multiple of {MULTIPLE}; leave it out by format.exclude")
    return tensors | {"weight_scale": within, "weight": weight >> 4 | weight << 4}
