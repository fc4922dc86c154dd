"""INT4 weights in blocks along the input features, their channels scaled by AWQ's search (arXiv 2306.00978)."""

from typing import Any

from diffopt.formats.method import Method

INT4: dict[str, Any] = {"num_bits": 4}

METHOD = Method(
    name="int4_awq",
    weight=INT4,
    input=None,
    algorithm="awq_lite",
    weight_bits=4.125,  # a 16-bit scale for a block of 128
    block_size=128,
    weights=("local_hessian", "mse", "max"),
    awq=("lite", "clip", "full"),
    attention=False,
)
