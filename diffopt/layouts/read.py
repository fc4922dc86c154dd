"""What is read of a backbone that is quantized already: layers' tensors in Model-Optimizer's layout, whatever it had."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from diffopt.quantization.adopted import ATTENTION_AMAX

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Read:
    """A backbone as its file has it, under diffusers' names."""

    layers: dict[str, tuple[str, Tensors]]
    """By name its format, and its tensors by the last part of their keys."""
    plain: Tensors
    """All that is of no quantized layer."""
    attention: dict[str, torch.Tensor] = field(default_factory=dict)
    """By name of an attention layer whose products are in FP8, FP32 [3]: the maxima of q, k and v."""

    def tensors(self) -> Tensors:
        """Of all, by their keys."""
        found = {f"{name}.{key}": x for name, (_, own) in self.layers.items() for key, x in own.items()}
        return found | self.plain | {f"{name}.{ATTENTION_AMAX}": x for name, x in self.attention.items()}


def sorted_out(there: Mapping[str, torch.Tensor], formats: Mapping[str, str]) -> Read:
    """`there` by the layers that have these formats."""
    layers: dict[str, tuple[str, Tensors]] = {n: (f, {}) for n, f in formats.items()}
    plain = {}
    for key, tensor in there.items():
        name, _, last = key.rpartition(".")
        if name in layers:
            layers[name][1][last] = tensor
        else:
            plain[key] = tensor
    for name, (format, own) in layers.items():
        if format == "int8" and "pre_quant_scale" in own:
            layers[name] = ("int8_sq", own)
    return Read(layers, plain)


def opened(files: Iterable[Path]) -> Tensors:
    """All tensors of these files. Raises ValueError for one that cannot be read."""
    found: Tensors = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as e:
            raise ValueError(f"{path.name} cannot be read: {str(e).splitlines()[0][:120]}") from None
    return found
