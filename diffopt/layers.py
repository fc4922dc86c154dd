"""Which layers of a backbone a format quantizes. Works on a model without weights (device meta) too."""

import math
from fnmatch import fnmatch

import torch

from diffopt.errors import ConfigError


def expected_layers(model: torch.nn.Module, excluded: list[str], convolutions: bool = False) -> list[str]:
    """Names of the layers that a family wants quantized: every Linear, and Conv2d where asked, that no exclusion names."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d) if convolutions else (torch.nn.Linear,)
    found = [name for name, m in model.named_modules() if isinstance(m, kinds)]
    return [n for n in found if not any(fnmatch(f"{n}.weight_quantizer", f"{e}.*") for e in excluded)]


def indivisible(model: torch.nn.Module, layers: list[str], block_size: int) -> list[str]:
    """Those of the Linear `layers` whose input features are no whole number of blocks."""
    return [n for n, features in _features(model, layers).items() if features % block_size]


def check_blocks(model: torch.nn.Module, layers: list[str], block_size: int) -> None:
    """Raises ConfigError when a layer's input features are no whole number of blocks."""
    if broken := indivisible(model, layers, block_size):
        features = _features(model, layers)
        common = math.gcd(*features.values())
        fits = common & -common  # its largest power of two
        advice = f"set format.block_size={min(fits, 128)}, or" if fits >= 16 else "exclude it by format.exclude, or"
        raise ConfigError(
            f"format.block_size: does not divide the {features[broken[0]]} input features of {broken[0]} "
            f"(got {block_size}; {len(broken)} such layers); {advice} choose another format"
        )


def _features(model: torch.nn.Module, layers: list[str]) -> dict[str, int]:
    named = dict(model.named_modules())
    return {n: m.in_features for n in layers if isinstance(m := named[n], torch.nn.Linear)}
