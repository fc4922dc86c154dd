"""INT8 weights per channel and inputs per tensor, calibrated on maxima; convolutions too."""

from typing import Any

from diffopt.formats.method import Method

WEIGHT: dict[str, Any] = {"num_bits": 8, "axis": 0}
INPUT: dict[str, Any] = {"num_bits": 8, "axis": None}

METHOD = Method(
    name="int8",
    weight=WEIGHT,
    input=INPUT,
    algorithm="max",
    weight_bits=8,
    convolution=(WEIGHT, INPUT),
    steps=True,
    ranges=("max", "percentile", "mse"),
    attention=False,
)
