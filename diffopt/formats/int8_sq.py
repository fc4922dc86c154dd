"""INT8 weights per channel and inputs per tensor, outliers moved into the weights by SmoothQuant (arXiv 2211.10438)."""

from diffopt.formats.method import Method

METHOD = Method(
    name="int8_sq",
    weight={"num_bits": 8, "axis": 0},
    # Per channel while calibrating; modelopt makes it per tensor once the scales are in the weights.
    input={"num_bits": 8, "axis": -1},
    algorithm="smoothquant",
    weight_bits=8,
    attention=False,
)
