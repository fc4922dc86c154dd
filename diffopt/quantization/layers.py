"""The layers of a backbone that formats can quantize, read from the model and known by name. Imports no torch."""

from collections.abc import Iterable
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from diffopt.files.layers import Layer

if TYPE_CHECKING:
    import torch


def layers_of(model: "torch.nn.Module", prefix: str = "") -> list[Layer]:
    """Every linear layer, 2-d convolution and attention of `model`, in its order; `prefix` goes before their names."""
    import torch
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention

    found = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            found.append(Layer(prefix + name, "linear", tuple(module.weight.shape)))
        elif isinstance(module, torch.nn.Conv2d):
            found.append(Layer(prefix + name, "convolution", tuple(module.weight.shape)))
        elif isinstance(module, (Attention, AttentionModuleMixin)):
            heads, inner = getattr(module, "heads", None), getattr(module, "inner_dim", None)
            if isinstance(heads, int) and isinstance(inner, int):  # some classes count otherwise; none of them is quantized
                found.append(Layer(prefix + name, "attention", (heads, inner // heads)))
    return found


def expected_layers(model: "torch.nn.Module", excluded: Iterable[str], convolutions: bool = False) -> list[str]:
    """Names of the layers of `model` that a format is to quantize: every linear one, and convolutions where asked."""
    return [x.name for x in taken(layers_of(model), excluded, convolutions)]


def taken(layers: Iterable[Layer], excluded: Iterable[str], convolutions: bool = False) -> list[Layer]:
    """Those of the layers that a format is to quantize: every linear one, and convolutions where asked."""
    kinds = {"linear", "convolution"} if convolutions else {"linear"}
    return [x for x in without(layers, excluded) if x.kind in kinds]


def without(layers: Iterable[Layer], globs: Iterable[str]) -> list[Layer]:
    """The layers that no glob names; a glob that names a module names all that is in it."""
    patterns = [f"{g}.*" for g in globs]
    return [layer for layer in layers if not any(fnmatch(f"{layer.name}.", p) for p in patterns)]
