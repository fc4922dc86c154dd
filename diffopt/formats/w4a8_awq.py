"""INT4 weights in blocks, scaled by AWQ's search, then FP8: their scales fit FP8 inputs and an FP8 product."""

from diffopt.formats.fp8 import E4M3
from diffopt.formats.int4_awq import INT4
from diffopt.formats.method import Method

METHOD = Method(
    name="w4a8_awq",
    weight=[INT4, E4M3],
    input=E4M3,
    algorithm="awq_lite",
    weight_bits=4.125,  # a 16-bit scale for a block of 128
    block_size=128,
    attention=False,
)
