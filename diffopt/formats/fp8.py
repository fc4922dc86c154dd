"""FP8 E4M3, per tensor, weights and inputs; convolutions too."""

from typing import Any

from diffopt.formats.method import Method

E4M3: dict[str, Any] = {"num_bits": (4, 3), "axis": None}

METHOD = Method(
    name="fp8",
    weight=E4M3,
    input=E4M3,
    algorithm="max",
    weight_bits=8,
    convolution=(E4M3, E4M3),
    ranges=("max", "percentile", "mse"),
)
