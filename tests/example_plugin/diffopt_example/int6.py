"""A format: integers between those of INT8 and of INT4, to see how few bits a model needs. It is simulated."""

from diffopt.formats import Method

METHOD = Method(
    name="int6",
    weight={"num_bits": 6, "axis": 0},
    input={"num_bits": 8, "axis": None},
    algorithm="max",
    weight_bits=6,
    attention=False,
)
