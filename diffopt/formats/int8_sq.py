"""INT8 weights per channel and inputs per tensor, outliers moved into the weights by SmoothQuant (arXiv 2211.10438).

Convolutions are quantized without smoothing, as modelopt does.
"""

from diffopt.formats.int8 import INPUT, WEIGHT
from diffopt.formats.method import Method

METHOD = Method(
    name="int8_sq",
    weight=WEIGHT,
    # Per channel while calibrating; modelopt makes it per tensor once the scales are in the weights.
    input={"num_bits": 8, "axis": -1},
    algorithm="smoothquant",
    weight_bits=8,
    convolution=(WEIGHT, INPUT),
    steps=True,
    attention=False,
)
