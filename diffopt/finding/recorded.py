"""Templates of what was passed to a backbone, from calls at several sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffopt.models.extent import fitted
from diffopt.models.family import Size
from diffopt.models.template import MODEL, NOISE

TIME = "timestep"
SEVERAL = ("down_block_additional_residuals", "controlnet_block_samples", "controlnet_single_block_samples")
"""Arguments that are lists of a ControlNet's states."""


class Unfit(ValueError):
    """What was passed cannot be written down; says which input, and why."""


def template(name: str, values: Sequence[Any], sizes: Sequence[Size], dtype: torch.dtype) -> Any:
    """The template that gives these values at these sizes (diffopt/models/template.py). Raises Unfit where none does."""
    first = values[0]
    if any(type(v) is not type(first) for v in values):
        raise Unfit(f"{name} is of several kinds ({', '.join(sorted({type(v).__name__ for v in values}))})")
    if isinstance(first, torch.Tensor):
        return _tensor(name, values, sizes, dtype)
    if isinstance(first, (list, tuple, torch.Size)):
        return _list(name, values, sizes, dtype)
    if isinstance(first, int) and not isinstance(first, bool):
        found = fitted(values, sizes)
        if found is None:
            raise Unfit(f"{name} follows no rule (got {', '.join(map(str, values))})")
        return found
    if isinstance(first, (bool, float)):
        if any(v != first for v in values):
            raise Unfit(f"{name} follows no rule (got {', '.join(map(str, values))})")
        return first
    raise Unfit(f"{name} is a {type(first).__name__}")


def _tensor(name: str, values: Sequence[torch.Tensor], sizes: Sequence[Size], dtype: torch.dtype) -> dict[str, Any]:
    first = values[0]
    if first.is_complex():
        raise Unfit(f"{name} is complex, which graphs have not")
    if any(v.dim() != first.dim() for v in values):
        raise Unfit(f"{name} has several numbers of axes")
    shape = [fitted([v.shape[i] for v in values], sizes) for i in range(first.dim())]
    for i, axis in enumerate(shape):
        if axis is None:
            raise Unfit(f"axis {i} of {name} follows no rule (got {', '.join(str(v.shape[i]) for v in values)})")
    kind = MODEL if first.dtype == dtype else str(first.dtype).removeprefix("torch.")
    if name == TIME and not first.is_floating_point():  # which another scheduler's would not be; FP32 holds all of them exactly
        kind = "float32"
    return {"shape": shape, "dtype": kind, "fill": _fill(values)}


def _fill(values: Sequence[torch.Tensor]) -> str | float | int | bool:
    """A number where all are that; 0 for other whole ones, such as positions; else noise."""
    first = values[0]
    if all(v.numel() and bool((v == v.flatten()[0]).all()) and bool(v.flatten()[0] == first.flatten()[0]) for v in values):
        found: float | int | bool = first.flatten()[0].item()
        return found
    whole = all(bool((v == v.round()).all()) if v.is_floating_point() else True for v in values)
    return 0 if whole else NOISE


def _list(name: str, values: Sequence[Any], sizes: Sequence[Size], dtype: torch.dtype) -> Any:
    if any(isinstance(x, torch.Tensor) for v in values for x in v):
        raise Unfit(f"{name} is a list of tensors")
    lengths = [len(v) for v in values]
    if len({*lengths}) == 1:
        return [template(f"{name}[{i}]", [v[i] for v in values], sizes, dtype) for i in range(lengths[0])]
    each = fitted(lengths, sizes)
    if each is None or any(x != v[0] for v in values for x in v):
        raise Unfit(f"{name} is a list that follows no rule")
    return {"each": each, "of": template(f"{name}[0]", [v[0] for v in values], sizes, dtype)}


def flat(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Arguments without what is None, empty or the switch of the output's form; of dicts and tuples of tensors what is in them,
    and whose it is; of lists of a ControlNet's states each, by its number."""
    found: dict[str, Any] = {}
    nested: dict[str, str] = {}
    for name, value in given.items():
        if name == "return_dict" or value is None or (isinstance(value, Mapping) and not value):
            continue
        within = value
        if (
            name not in SEVERAL
            and isinstance(value, (list, tuple))
            and value
            and all(isinstance(x, torch.Tensor) for x in value)
        ):
            within = {f"{name}.{i}": x for i, x in enumerate(value)}
        if isinstance(within, Mapping):
            inner = {n: x for n, x in within.items() if x is not None}
            nested |= dict.fromkeys(inner, name)
            found |= inner
        elif name in SEVERAL:
            found |= {f"{name}_{i}": x for i, x in enumerate(value)}
        else:
            found[name] = value
    return found, nested
