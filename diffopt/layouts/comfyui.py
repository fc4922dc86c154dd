"""ComfyUI's layout: one file of the backbone under its makers' names, and beside each quantized layer what it is quantized to.

The tensors are as its QUANTIZATION.md and `comfy/ops.py` have them. NVFP4 and MXFP8 have their scales in tiles, and of two
NVFP4 codes in a byte the first is the higher: otherwise than in Model-Optimizer's layout. Where q, k and v are one layer there,
they have one scale for the tensor, and are refused with several. INT8 has a scale a row, and rounds its inputs by row itself.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from diffopt.kernels.block_scales import ACROSS, ROWS, tiled
from diffopt.layouts import COMFYUI, UNREAD, modelopt
from diffopt.layouts.names import Names

MARK = "comfy_quant"
MULTIPLE = 16
"""What both lengths of an NVFP4 weight are, there; others would be padded."""

Tensors = dict[str, torch.Tensor]


def write(file: Path, backbone: Any, formats: Mapping[str, str], names: Names) -> int:
    """Write a backbone as `checkpoint.restore` gave it, which stays as it is; the bytes of its tensors.

    `formats` are its quantized layers', `names` its family's. Raises ValueError, naming the layer, for what ComfyUI does not
    read.
    """
    state = {n: x.detach() for n, x in backbone.state_dict().items() if "_quantizer." not in n}
    table, turned = names.found(state), names.turned(state)
    if nameless := {*state} - {x for ours in table.values() for x in ours}:
        raise ValueError(f"{min(nameless)} has no name in ComfyUI's layout")
    found: Tensors = {}
    for there, ours in table.items():
        layers = [name.rpartition(".")[0] for name in ours]
        stem, _, last = there.rpartition(".")
        if last == "weight" and not formats.keys().isdisjoint(layers):
            found |= {f"{stem}.{key}": x for key, x in _quantized(backbone, layers, formats, turned).items()}
        else:
            found[there] = torch.cat([_arranged(state[n], layer in turned) for n, layer in zip(ours, layers, strict=True)])
    own = {name: x.cpu().contiguous().clone() for name, x in found.items()}
    save_file(own, file, metadata={"format": "pt"})
    return sum(x.nbytes for x in own.values())


def _arranged(tensor: torch.Tensor, turn: bool) -> torch.Tensor:
    """A tensor of a layer's outputs, its halves in the other order where they are there."""
    return torch.cat(tensor.chunk(2)[::-1]) if turn else tensor


def _quantized(backbone: Any, layers: list[str], formats: Mapping[str, str], turned: frozenset[str]) -> Tensors:
    """Of layers of diffusers that are one there, one under the other; without the bias, which is as it was."""
    first, last = layers[0], layers[-1]
    kinds = {formats.get(name) for name in layers}
    if len(kinds) > 1:
        raise ValueError(f"{first} and {last} are one layer for ComfyUI, and have different formats here")
    (kind,) = kinds
    if kind not in COMFYUI:
        raise ValueError(f"{first} is in {kind}, which ComfyUI does not read: {UNREAD[str(kind)]}")
    written = [_layer(backbone, name, kind, name in turned) for name in layers]
    for key in ("weight_scale", "weight_scale_2", "input_scale"):
        same = [part[key] for part in written if key in part and part[key].dim() == 0]
        if not all(x.equal(same[0]) for x in same):
            raise ValueError(f"{first} and {last} are one layer for ComfyUI, with one scale; set format.share_scales=true")
    found = {key: x if x.dim() == 0 else torch.cat([part[key] for part in written]) for key, x in written[0].items()}
    mark = json.dumps({"format": COMFYUI[kind]}).encode()
    return _tiled(found, kind, first) | {MARK: torch.frombuffer(bytearray(mark), dtype=torch.uint8)}


def _layer(backbone: Any, name: str, kind: str, turn: bool) -> Tensors:
    layer = backbone.get_submodule(name)
    if not isinstance(layer, torch.nn.Linear):
        raise ValueError(f"{name} is a convolution, which ComfyUI reads unquantized alone; leave it out by format.exclude")
    found = modelopt.layer(layer, kind)
    found.pop("bias", None)
    if kind == "int8":  # its reader takes no input scale
        return {"weight": _arranged(found["weight"], turn), "weight_scale": _arranged(found["weight_scale"][:, None], turn)}
    return {key: x if x.dim() == 0 else _arranged(x, turn) for key, x in found.items()}


def _tiled(tensors: Tensors, kind: str, name: str) -> Tensors:
    if kind in ("fp8", "int8"):
        return tensors
    scale, weight = tensors["weight_scale"], tensors["weight"]
    rows, blocks = scale.shape
    within = tiled(scale).reshape(-(-rows // ROWS) * ROWS, -(-blocks // ACROSS) * ACROSS)
    if kind == "mxfp8":
        return tensors | {"weight_scale": within.view(torch.float8_e8m0fnu)}
    if len(weight) % MULTIPLE:
        raise ValueError(f"{name} has {len(weight)} outputs, not a multiple of {MULTIPLE}; leave it out by format.exclude")
    return tensors | {"weight_scale": within, "weight": weight >> 4 | weight << 4}
