"""Which layers of a backbone a format quantizes. Works on a model without weights (device meta) too; imports no torch."""

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from diffopt.errors import ConfigError

if TYPE_CHECKING:
    import torch


def expected_layers(model: "torch.nn.Module", excluded: list[str], convolutions: bool = False) -> list[str]:
    """Names of the layers that a family wants quantized: every Linear, and Conv2d where asked, that no exclusion names."""
    import torch

    kinds = (torch.nn.Linear, torch.nn.Conv2d) if convolutions else (torch.nn.Linear,)
    found = [name for name, m in model.named_modules() if isinstance(m, kinds)]
    return [n for n in found if not any(fnmatch(f"{n}.weight_quantizer", f"{e}.*") for e in excluded)]


def features(model: "torch.nn.Module", layers: Iterable[str]) -> dict[str, int]:
    """Input features of those of the `layers` that are Linear."""
    import torch

    named = dict(model.named_modules())
    return {n: m.in_features for n in layers if isinstance(m := named[n], torch.nn.Linear)}


def indivisible(model: "torch.nn.Module", layers: Iterable[str], block_size: int) -> list[str]:
    """Those of the Linear `layers` whose input features are no whole number of blocks."""
    return [n for n, many in features(model, layers).items() if many % block_size]


def check_blocks(features: Mapping[str, int], block_size: int) -> None:
    """Raises ConfigError when the input features of a layer, by name, are no whole number of blocks."""
    broken = [n for n, many in features.items() if many % block_size]
    if not broken:
        return
    common = math.gcd(*features.values())
    fits = min(common & -common, 128)  # the largest power of two in it
    advice = f"set format.block_size={fits}" if fits >= 16 else f"exclude it with format.exclude=[{broken[0]}]"
    raise ConfigError(
        f"format.block_size: does not divide the {features[broken[0]]} input features of {broken[0]}, nor those of "
        f"{len(broken) - 1} more layers (got {block_size}); {advice}"
    )
