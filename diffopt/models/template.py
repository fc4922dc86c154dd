"""Backbone inputs written down as data, and made again at any size."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffopt.models.extent import evaluated
from diffopt.models.family import Size

if TYPE_CHECKING:
    import torch

MODEL = "model"
"""The dtype of a tensor that has the model's own."""
NOISE = "noise"
"""The fill of a tensor of normal numbers."""


def made(template: Any, size: Size, dtype: "torch.dtype") -> Any:
    """The value that a template stands for, at a size, in a model of a dtype.

    `{shape: [batch, 4, height / 8], dtype: model, fill: noise}` is a tensor, whose fill may be a number; a text is arithmetic
    (extent.py); `{each: batch, of: X}` is a list of as many X; a list is a tuple of what is in it; all else is itself.
    """
    import torch

    from diffopt.models.example import noise

    if isinstance(template, str):
        return evaluated(template, size)
    if isinstance(template, Mapping) and "shape" in template:
        shape, fill = shape_of(template, size), template.get("fill", NOISE)
        kind = dtype if template.get("dtype", MODEL) == MODEL else getattr(torch, template["dtype"])
        return noise(kind)(*shape) if fill == NOISE else torch.full(shape, fill, dtype=kind)
    if isinstance(template, Mapping) and "each" in template:
        return [made(template["of"], size, dtype) for _ in range(evaluated(template["each"], size))]
    if isinstance(template, (list, tuple)):
        return tuple(made(x, size, dtype) for x in template)
    return template


def shape_of(template: Mapping[str, Any], size: Size) -> tuple[int, ...]:
    """Of a tensor's template."""
    return tuple(evaluated(axis, size) for axis in template["shape"])


def batched(template: Any) -> bool:
    """Whether a template is of a tensor whose first axis is the batch."""
    return isinstance(template, Mapping) and bool(template.get("shape")) and "batch" in str(template["shape"][0])
