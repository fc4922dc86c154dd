"""One file of a backbone under its makers' names: ComfyUI's with its marks, the older one with `scale_weight`, or one of Black
Forest Labs, whose tensors are as Model-Optimizer has them."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from diffopt.groups import quantized_source
from diffopt.kernels.block_scales import ACROSS, ROWS, straight
from diffopt.layouts.names import Names
from diffopt.layouts.read import Read, Tensors, opened, sorted_out
from diffopt.quantization.block_fake_quant import BLOCK, MX_BLOCK
from diffopt.store import tensor_file
from diffopt.store.composed import WITHIN

T = TypeVar("T")
ONE = torch.ones(())


def read(path: Path, backbone: Any, names: Names | None) -> Read:
    """`names` are those of the backbone's family there, where they are known."""
    formats = quantized_source.layers_of(tensor_file.tensors(path), tensor_file.metadata(path))
    marked = bool(tensor_file.metadata(path).get("_quantization_metadata"))
    whole = _within(opened([path]))
    formats = _within(formats)
    marked |= any(n.endswith(".comfy_quant") for n in whole)
    whole = {_renewed(n): x for n, x in whole.items() if not n.endswith(".comfy_quant") and n != "scaled_fp8"}
    layers = sorted_out(whole, formats).layers
    cast = not marked and not any(n.endswith(".weight_scale") for n in whole)
    for name, (format, own) in layers.items():
        # FP8 that was cast, without any scale, stands for itself.
        layers[name] = (format, _straightened(own, format, name) if marked else own | ({"weight_scale": ONE} if cast else {}))
    plain = {n: x for n, x in whole.items() if n.rpartition(".")[0] not in layers}
    linear = {n for n, m in backbone.named_modules() if isinstance(m, torch.nn.Linear)}
    if {*layers} <= linear and {*plain} <= {*backbone.state_dict()}:
        return Read(layers, plain)
    if names is None:
        kind = type(backbone).__name__
        raise ValueError(f"{min({*layers} - linear or {*plain})} is none of a {kind}, of which no other names are known here")
    return _named(Read(layers, plain), backbone, names)


def _within(named: dict[str, T]) -> dict[str, T]:
    """Of a file with other models in it the backbone's alone."""
    own = {n.removeprefix(WITHIN): x for n, x in named.items() if n.startswith(WITHIN)}
    return own or named


def _renewed(key: str) -> str:
    """ComfyUI's names of before it had marks."""
    layer, _, last = key.rpartition(".")
    return {"scale_weight": f"{layer}.weight_scale", "scale_input": f"{layer}.input_scale"}.get(last, key)


def _straightened(own: Tensors, format: str, name: str) -> Tensors:
    """ComfyUI's tiles of scales row by row, and the first of two codes in the lower bits."""
    if format not in ("nvfp4", "mxfp8"):
        return own
    weight, scale = own["weight"], own.get("weight_scale")
    block = BLOCK // 2 if format == "nvfp4" else MX_BLOCK  # of bytes
    rows, blocks = len(weight), weight.shape[1] // block
    if scale is None or scale.numel() != -(-rows // ROWS) * ROWS * -(-blocks // ACROSS) * ACROSS:
        raise ValueError(f"{name} has no scales of blocks in tiles, as ComfyUI has them of {format}")
    small = straight(scale.reshape(-1), rows, blocks)
    if format == "mxfp8":
        return own | {"weight_scale": small.view(torch.uint8)}
    return own | {"weight_scale": small, "weight": weight >> 4 | weight << 4}


def _named(found: Read, backbone: Any, names: Names) -> Read:
    """Of the makers' names diffusers'; what is one layer there is several here."""
    here = backbone.state_dict()
    table, turned = names.found(here), names.turned(here)
    layers: dict[str, tuple[str, Tensors]] = {}
    plain: Tensors = {}
    used = set()
    for there, ours in table.items():
        stem, _, last = there.rpartition(".")
        parts = [name.rpartition(".")[0] for name in ours]
        rows = [here[name].shape[0] if here[name].dim() else 1 for name in ours]
        if stem in found.layers:
            used |= {stem}
            if last == "weight":
                format, tensors = found.layers[stem]
                for name, part in zip(parts, _cut(tensors, rows, stem, turned.intersection(parts)), strict=True):
                    layers[name] = (format, part)
        elif there in found.plain:
            used |= {there}
            for name, part in zip(ours, _cut({last: found.plain[there]}, rows, stem, turned.intersection(parts)), strict=True):
                plain[name] = part[last]
    kind = type(backbone).__name__
    if strange := sorted({*found.layers, *found.plain} - used):
        raise ValueError(
            f"{strange[0]} is no {'layer' if strange[0] in found.layers else 'weight'} of a {kind} by its makers' names"
        )
    return Read(layers, plain)


def _cut(tensors: Tensors, outputs: list[int], name: str, turned: Collection[str]) -> Iterator[Tensors]:
    """The rows of each of several layers; what has no rows is of all. Of a layer that is turned there the halves change places
    again."""
    total = sum(outputs)
    starts = [sum(outputs[:i]) for i in range(len(outputs))]
    for key in ("weight", "bias"):
        if key in tensors and tensors[key].dim() and len(tensors[key]) != total:
            raise ValueError(f"{name}.{key} has {len(tensors[key])} rows, and the model {total}")
    whole = ("pre_quant_scale", "input_scale", "weight_scale_2")
    for start, many in zip(starts, outputs, strict=True):
        part = {}
        for key, x in tensors.items():
            if key not in whole and x.dim() and len(x) == total:
                x = x[start : start + many]
                x = torch.cat(x.chunk(2)[::-1]) if turned else x
            part[key] = x.clone()
        yield part
