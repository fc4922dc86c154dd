"""Weights that a file has as codes: those in FP8 are dequantized when they are read, all others are refused, by the headers.

What is wrong is a ValueError, `what; advice`. Imports no torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from diffopt.files.json_file import loaded
from diffopt.store.files import json_object
from diffopt.store.tensor_file import GGUF, Tensor, metadata, tensors

FP8 = ("F8_E4M3", "F8_E5M2")
WIDE = ("F64", "F32", "F16", "BF16")
"""What a scale's number may be in."""
SCALES = (".scale_weight", ".weight_scale")
"""What a weight in FP8 has beside it under ComfyUI's old and new names, and in files of Model-Optimizer and of its authors."""
ASIDE = (*SCALES, ".scale_input", ".input_scale", ".comfy_quant")
MARK = "scaled_fp8"
"""A tensor of older files of ComfyUI, which says that their weights have scales."""
WEIGHT = ".weight"


def aside(name: str) -> bool:
    """Whether a tensor is none of the model's."""
    return name.endswith(ASIDE) or name.rpartition(".")[2] == MARK


def in_fp8(there: Mapping[str, Tensor]) -> bool:
    return any(x.dtype in FP8 and not aside(n) for n, x in there.items())


def own(files: Sequence[Path]) -> bool:
    """Whether a part's files have weights in FP8 that whoever wrote them does not say how to read."""
    return bool(files) and not _described(files[0].parent) and in_fp8(_headers(files))


def check(files: Sequence[Path], prefixes: Sequence[str] = ()) -> None:
    """Whether what is read of files is numbers, or FP8 that can be made numbers of. `prefixes` stand before the names of their
    parts, where they may have several: one can have scales and another none."""
    if not files or files[0].suffix == GGUF or _described(files[0].parent):  # whose types the package knows, or a config tells
        return
    there = _headers(files)
    codes = {n: x for n, x in there.items() if x.dtype in FP8 and n.endswith(WEIGHT) and len(x.shape) > 1}
    for name, x in there.items():
        if name.endswith(WEIGHT) and x.dtype in ("I8", "U8"):
            raise ValueError(
                f"{name} is in {x.dtype}, codes which are read of a backbone alone; give weights in 16 bits or FP8"
            )
    scales = {n: s for n, x in codes.items() if (s := scale_of(n, there))}
    for name, scale in scales.items():
        _check_scale(name, codes[name], there[scale], scale)
    marked = _marked(there, files)
    for part in (*prefixes, ""):
        of_part = {n for n in there if next((p for p in prefixes if n.startswith(p)), "") == part}
        lacking = sorted(({*codes} - {*scales}) & of_part)
        scaled = {*scales} & of_part or any(n.rpartition(".")[2] == MARK for n in of_part)
        if lacking and (scaled or marked & {n.removesuffix(WEIGHT) for n in lacking}):
            more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
            raise ValueError(f"{lacking[0]}{more} is in FP8 without the scale that belongs to it; download it again")


def scale_of(weight: str, there: Mapping[str, object]) -> str | None:
    """The name of its scale."""
    layer = weight.removesuffix(WEIGHT)
    return next((layer + s for s in SCALES if layer + s in there), None)


def _check_scale(name: str, codes: Tensor, scale: Tensor, called: str) -> None:
    if scale.dtype not in WIDE:
        raise ValueError(
            f"{name} has scales in {scale.dtype}, of a format that is read of a backbone alone; give FP8 or 16 bits"
        )
    rows = (codes.shape[0], *[1] * (len(codes.shape) - 1))
    if scale.shape not in ((), (1,), rows[:1], rows, rows[:2]):
        raise ValueError(
            f"{called} has the shape {list(scale.shape)}, and {name} {list(codes.shape)}; give one scale, or one a row"
        )


def _headers(files: Sequence[Path]) -> dict[str, Tensor]:
    return {n: x for path in files for n, x in tensors(path).items()}


def _marked(there: Mapping[str, Tensor], files: Sequence[Path]) -> set[str]:
    """Layers that a file of ComfyUI says are quantized."""
    found = {n.removesuffix(".comfy_quant") for n in there if n.endswith(".comfy_quant")}
    for listed in filter(None, (metadata(path).get("_quantization_metadata") for path in files)):
        try:
            found |= {*loaded(listed)["layers"]}
        except (ValueError, KeyError, TypeError):
            raise ValueError("its _quantization_metadata is broken; download it again") from None
    return found


def _described(folder: Path) -> bool:
    try:
        return bool(json_object(folder / "config.json").get("quantization_config"))
    except (OSError, ValueError):  # which is said where it is opened
        return False
