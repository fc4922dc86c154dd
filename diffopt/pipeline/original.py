"""Parts read of files that have them under their makers' names, or as codes: FP8 and GGUF are dequantized.

The names are found on the meta device, before anything is read; what is wrong is a ValueError, `what; advice`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from safetensors import SafetensorError, safe_open

from diffopt.files.originals import Original
from diffopt.store.coded import SCALES, WEIGHT, aside, scale_of
from diffopt.store.composed import WITHIN
from diffopt.store.tensor_file import GGUF
from diffopt.store.tensor_file import tensors as header

Tensors = dict[str, torch.Tensor]
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def empty(files: Sequence[Path], prefix: str) -> Tensors:
    """The tensors that `whole` gives, on the meta device, by the files' headers alone."""
    return {
        n.removeprefix(prefix): torch.empty(x.shape, device="meta")
        for path in files
        for n, x in header(path).items()
        if n.startswith(prefix) and not aside(n)
    }


def whole(files: Sequence[Path], prefix: str) -> Tensors:
    """A part's tensors, in floating point. Raises ValueError for a scale that is none."""
    if files[0].suffix == GGUF:
        return _of_gguf(files[0], prefix)
    found = _read(files, prefix, lambda _: True)
    return {n: _dequantized(n, x, found) for n, x in found.items() if not aside(n)}


def check_scales(files: Sequence[Path], prefix: str) -> None:
    """Whether every scale is a positive number. Raises ValueError."""
    for name, scale in _read([p for p in files if p.suffix != GGUF], prefix, lambda n: n.endswith(SCALES)).items():
        found = scale.float().flatten()
        if len(odd := found[~(found.isfinite() & (found > 0))]):
            raise ValueError(f"{name} has {odd[0]:.3g}, which is no scale; download it again")


def _read(files: Sequence[Path], prefix: str, wanted: Callable[[str], bool]) -> Tensors:
    found: Tensors = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                names = [n for n in file.keys() if n.startswith(prefix) and wanted(n)]  # noqa: SIM118
                found |= {n.removeprefix(prefix): file.get_tensor(n) for n in names}
        except (OSError, SafetensorError) as e:
            raise ValueError(f"{path.name} cannot be read: {str(e).splitlines()[0][:120]}; download it again") from None
    return found


def _dequantized(name: str, x: torch.Tensor, there: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A number is its code times the scale; FP8 that was cast, without any, stands for itself. As ComfyUI has it, a scale
    counts for a layer that is not in FP8 too."""
    called = scale_of(name, there) if name.endswith(WEIGHT) else None
    if called is None:
        return x.to(torch.bfloat16) if x.dtype in FLOAT8 else x  # which holds every number of both
    scale = there[called].float()
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


def read(files: Sequence[Path], original: Original, model: torch.nn.Module) -> torch.nn.Module:
    """`model`, whose parameters are on the meta device, with the files' tensors in their precisions."""
    fill(model, renamed(whole(files, original.prefix), original, model))
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
