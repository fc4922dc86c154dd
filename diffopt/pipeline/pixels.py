"""The pictures of prompts as a pipeline is given them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from diffopt.data.pictured import MASK, Asked, fitted, unfit
from diffopt.errors import PlanError
from diffopt.models import Family


def pixels(family: Family, prompts: Sequence[str], model: Any) -> dict[str, torch.Tensor]:
    """By the pipeline's argument, uint8 [b, 3, model.height, model.width], of masks [b, 1, ...].

    A picture of another shape is scaled until it covers that, and cropped about its middle; so is its mask. Raises PlanError
    for prompts that have others than the family takes: of a found one that is known here first.
    """
    if family.animates:  # its prompts are pictures, which it embeds itself
        return {}
    found = {}
    for prompt in prompts:
        there = prompt.pictures if isinstance(prompt, Asked) else {}
        if reason := unfit(family.name, tuple(family.pictures), tuple(there)):
            raise PlanError(f"prompts: {reason}")
    for role, argument in family.pictures.items():
        shown = [fitted(p.pictures[role], model.width, model.height) for p in prompts if isinstance(p, Asked)]
        rows = [np.array(x.convert("L"))[..., None] if role == MASK else np.array(x) for x in shown]
        found[argument] = torch.stack([torch.from_numpy(x).permute(2, 0, 1) for x in rows]).contiguous()
    return found


def given(family: Family, batches: Sequence[Mapping[str, torch.Tensor]], many: int) -> dict[str, list[np.ndarray]]:
    """By role the pictures of the first `many` prompts, of embeddings that `pixels` stands in: uint8 [height, width, (3)]."""
    found = {}
    for role, argument in family.pictures.items():
        rows = [x.permute(1, 2, 0).cpu().numpy() for batch in batches for x in batch[argument]]
        found[role] = [x[..., 0] if role == MASK else x for x in rows[:many]]
    return found
