"""Attention layers whose q, k and v, or k and v of another input, come out of one product."""

from collections.abc import Sequence
from typing import Any

import torch

from diffopt.kernels.fp8 import Fp8Linear, JoinedFp8Linear
from diffopt.kernels.int8 import Int8Linear, JoinedInt8Linear

QKV, ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")


def joined(layers: Sequence[Any]) -> torch.nn.Module | None:
    """One layer that gives what these give, side by side; None where there can be none."""
    for kind, one in ((Fp8Linear, JoinedFp8Linear), (Int8Linear, JoinedInt8Linear)):
        if all(type(layer) is kind for layer in layers):
            try:
                found: torch.nn.Module = one(layers)
            except ValueError:
                return None
            return found
    return None


def join(attention: Any, added: str | None = None) -> bool:
    """Give a layer of diffusers' what it calls fused projections, of layers with kernels; whether it could be done.

    `added` is its name for those of what is added to k and v, where its class has such. Its processor has to know them.
    """
    groups: dict[str, tuple[str, ...]] = {"to_kv": QKV[1:]} if attention.is_cross_attention else {"to_qkv": QKV}
    if added and getattr(attention, ADDED[1], None) is not None:
        groups[added] = ADDED[1:]
    made = {name: joined([getattr(attention, n) for n in names]) for name, names in groups.items()}
    if None in made.values():
        return False
    for name, names in groups.items():
        setattr(attention, name, made[name])
        for old in names:
            delattr(attention, old)
    attention.fused_projections = True
    return True
