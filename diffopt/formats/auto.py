"""A format for every layer by itself, chosen among candidates under a budget."""

from diffopt.formats.method import Method
from diffopt.formats.nvfp4 import WEIGHTS

FULL = "full"
"""Stands among the candidates for leaving a layer in the model's own precision."""

METHOD = Method(
    name="auto",
    weight={},  # the candidates'
    input={},
    algorithm="max",
    weight_bits=16,
    weights=WEIGHTS,  # of its layers in NVFP4
    attention=False,
)
