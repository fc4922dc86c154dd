"""Weights and scales in a narrower dtype, FP16 above all, whose largest number is 65504: what it cannot hold is named."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from diffopt.errors import GateError

AMAX = "._amax"
STEPS = 448
"""FP8's largest value: a scale is amax / 448, the smallest that formats have for an input."""


def narrow(backbone: torch.nn.Module, dtype: torch.dtype, inputs: str = "max") -> None:
    """Convert in place, tensor by tensor. Raises GateError for what `dtype` cannot hold, before anything is converted.

    modelopt's export divides by a scale, which an amax that has become infinite, or zero, makes a division by zero. `inputs` is
    how ranges of inputs were found: NVFP4, which alone has headroom, is exported in FP16 alone.
    """
    if all(p.dtype == dtype for p in backbone.parameters() if p.is_floating_point()):
        return
    for name, x in [*backbone.named_parameters(), *backbone.named_buffers()]:
        if x.is_floating_point() and x.numel() and (flaw := _flaw(name, x, dtype)):
            wide = "format.inputs=max" if inputs == "headroom" else "export.high_precision_dtype=bfloat16 or float32"
            raise GateError(f"export: {flaw}; set {wide}")
    torch.nn.Module.to(backbone, dtype)  # diffusers' own `to` warns of modules that it wants in float32


def _flaw(name: str, x: torch.Tensor, dtype: torch.dtype) -> str | None:
    peak, most, wanted = float(x.abs().max()), torch.finfo(dtype).max, str(dtype).removeprefix("torch.")
    quantizer, what = name.removesuffix(AMAX), "an amax of" if name.endswith(AMAX) else "values up to"
    if not peak <= most:
        return f"{quantizer} has {what} {peak:.6g}, which {wanted} cannot hold (got {wanted}, up to {most:.6g})"
    entering = name.endswith(AMAX) and x.numel() == 1 and "weight_quantizer" not in name
    if entering and peak and not float(torch.tensor(peak / STEPS, dtype=torch.float64).to(dtype)):
        return f"{quantizer} has an amax of {peak:.6g}, whose scale {wanted} rounds to zero (got {wanted})"
    return None


def beyond(files: Sequence[Path], most: float) -> Iterator[tuple[str, float]]:
    """By name the weights in safetensors files with values beyond `most`, and the largest of each."""
    for path in files:
        about = path.stat()
        yield from ((name, peak) for name, peak in _peaks(path, about.st_size, about.st_mtime_ns) if peak > most)


@cache  # the jobs of a sweep share models
def _peaks(path: Path, _size: int, _changed: int) -> list[tuple[str, float]]:
    from safetensors import safe_open

    found = []
    with safe_open(path, "pt") as file:
        for name in [*file.keys()]:
            about: Any = file.get_slice(name)
            if about.get_dtype() in ("BF16", "F32", "F64") and 0 not in about.get_shape():
                found.append((name, float(file.get_tensor(name).abs().max())))
    return found
