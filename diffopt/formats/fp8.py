"""FP8 E4M3, per tensor, weights and inputs."""

from diffopt.formats.method import Method

METHOD = Method(
    name="fp8",
    weight={"num_bits": (4, 3), "axis": None},
    input={"num_bits": (4, 3), "axis": None},
    algorithm="max",
    weight_bits=8,
)
