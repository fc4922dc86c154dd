"""Which pictures a pipeline takes with its prompts: by the names of its call's arguments."""

import re
from collections.abc import Collection, Mapping
from inspect import Parameter, signature
from typing import Any

import torch

from diffopt.models.family import Size

ARGUMENTS = {"image": "image", "mask_image": "mask", "control_image": "control"}
"""Of a call, and what they are (diffopt/data/pictured.py)."""
EDITS = re.compile("Edit|Kontext|Fill|Inpaint|ControlNet|Img2Img|ImageToVideo|ImageToImage")
"""In the name of a pipeline that is for pictures, though its call may have None as their default. Others that take some, or
none, are given none."""
CONTROL = "controlnet"


def taken(cls: Any, parts: Collection[str]) -> dict[str, str]:
    """By role the argument. With a ControlNet, `image` is what steers it, unless there is an argument for that."""
    takes = signature(cls.__call__).parameters
    named = bool(EDITS.search(cls.__name__))
    found = {role: n for n, role in ARGUMENTS.items() if n in takes and (named or takes[n].default is Parameter.empty)}
    if CONTROL in parts and "image" in found and "control" not in found:
        found["control"] = found.pop("image")
    return found


def random(pictures: Mapping[str, str], size: Size) -> dict[str, torch.Tensor]:
    """Of a size, in 0..1, by argument."""
    draw = torch.Generator().manual_seed(0)
    return {
        n: torch.rand(size.batch, 1 if role == "mask" else 3, size.height, size.width, generator=draw)
        for role, n in pictures.items()
    }
