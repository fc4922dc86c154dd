"""Parts read of files that have them under their makers' names: FP8 and GGUF are dequantized, names become the model's.

The names are found on the meta device, before anything is read; what is wrong is a ValueError, `what; advice`.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from safetensors import SafetensorError, safe_open

from diffopt.files.originals import Original
from diffopt.store.composed import WITHIN
from diffopt.store.tensor_file import GGUF
from diffopt.store.tensor_file import tensors as header

Tensors = dict[str, torch.Tensor]
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SCALES = (".scale_weight", ".weight_scale")
ASIDE = (*SCALES, ".scale_input", ".input_scale", ".comfy_quant")
"""What ComfyUI has beside an FP8 weight, under its old and its new names."""


def empty(path: Path, prefix: str) -> Tensors:
    """The tensors that `whole` gives, on the meta device, by the file's header alone."""
    return {
        n.removeprefix(prefix): torch.empty(x.shape, device="meta")
        for n, x in header(path).items()
        if n.startswith(prefix) and not _aside(n)
    }


def whole(path: Path, prefix: str) -> Tensors:
    """A part's tensors, in floating point."""
    if path.suffix == GGUF:
        return _of_gguf(path, prefix)
    try:
        with safe_open(path, framework="pt") as file:
            found = {n.removeprefix(prefix): file.get_tensor(n) for n in file.keys() if n.startswith(prefix)}  # noqa: SIM118
    except (OSError, SafetensorError) as e:
        raise ValueError(f"{path.name} cannot be read: {str(e).splitlines()[0][:120]}; download it again") from None
    return {n: _dequantized(n, x, found) for n, x in found.items() if not _aside(n)}


def _aside(name: str) -> bool:
    return name.endswith(ASIDE) or name.rpartition(".")[2] == "scaled_fp8"


def _dequantized(name: str, x: torch.Tensor, there: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A number is its code times the scale; FP8 that was cast, without any, stands for itself."""
    if x.dtype not in FLOAT8:
        return x
    layer = name.removesuffix(".weight")
    scale = next((there[layer + s] for s in SCALES if layer + s in there), None)
    if scale is None:
        return x.to(torch.bfloat16)  # which holds every number of both
    scale = scale.float()
    return x.float() * (scale.reshape(-1, *[1] * (x.dim() - 1)) if scale.numel() > 1 else scale)


def _of_gguf(path: Path, prefix: str) -> Tensors:
    from gguf import GGUFReader, dequantize

    found: Tensors = {}
    for row in GGUFReader(path).tensors:
        if row.name.startswith(prefix):
            numbers = torch.from_numpy(dequantize(row.data, row.tensor_type).copy())
            found[row.name.removeprefix(prefix)] = numbers.reshape(tuple(map(int, row.shape[::-1])))
    return found


def renamed(there: Tensors, original: Original, model: Any) -> Tensors:
    """Under the model's own names; `there` may lie on the meta device. Raises what diffusers does for what it does not know."""
    own = model.state_dict()
    if original.way == "makers":
        found = {n: x for name, ours in original.names.items() for n, x in _cut(there[name], name, ours, own, original.turned)}
    elif original.way == "diffusers":
        about: Any = SINGLE_FILE_LOADABLE_CLASSES[type(model).__name__]
        given = {WITHIN + n: x for n, x in there.items()} if "UNet" in type(model).__name__ else {**there}
        found = about["checkpoint_mapping_fn"](checkpoint=given, config=dict(model.config))
    elif original.way == "open_clip":
        found = convert_open_clip_checkpoint(model, {**there}, prefix="")
    else:
        found = there
    found |= {n: found[s] for n, s in _tied(model).items() if n not in found and s in found}
    if (projection := "text_projection.weight") in own and projection not in found:  # as diffusers has it of SD3's CLIP
        found |= {projection: torch.eye(len(own[projection]), device=next(iter(found.values())).device)}
    return {n: x for n, x in found.items() if n in own}


def _tied(model: Any) -> dict[str, str]:
    """By a parameter of a text encoder the one that it is one with."""
    found = getattr(model, "_tied_weights_keys", None)
    return {n: s for n, s in found.items() if {n, s} <= {*model.state_dict()}} if isinstance(found, Mapping) else {}


def _cut(x: torch.Tensor, name: str, ours: Collection[str], own: Tensors, turned: Collection[str]) -> list[tuple[str, Any]]:
    """The rows of each of several layers that are one there. Of a layer that is turned there the halves change places again."""
    rows = [len(own[n]) if own[n].dim() else 1 for n in ours]
    if len(rows) > 1 and len(x) != sum(rows):
        raise ValueError(f"{name} has {len(x)} rows, and the model {sum(rows)}")
    parts = [part.clone() for part in x.split(rows)] if len(rows) > 1 else [x]
    return [
        (n, torch.cat(part.chunk(2)[::-1]) if n.rpartition(".")[0] in turned else part)
        for n, part in zip(ours, parts, strict=True)
    ]


def read(path: Path, original: Original, model: torch.nn.Module) -> torch.nn.Module:
    """`model`, whose parameters are on the meta device, with the file's tensors in their precisions."""
    fill(model, renamed(whole(path, original.prefix), original, model))
    return model.eval()


def fill(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a model of parameters on the meta device its own, in their precision.

    Raises ValueError, naming it, for a tensor that is not there, that the model has no place for, or of another shape.
    """
    own = model.state_dict()
    for problem, names in (("lacks", {*own} - {*tensors}), ("has no place for", {*tensors} - {*own})):
        if names:
            raise ValueError(f"{problem} {min(names)}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise ValueError(f"has {name} of {list(tensor.shape)}, and the model of {list(own[name].shape)}")
    model.load_state_dict({n: x.to(own[n].dtype) for n, x in tensors.items()}, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
