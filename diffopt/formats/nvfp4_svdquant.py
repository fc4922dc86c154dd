"""NVFP4 of what is left of the weights when a low-rank part of them is kept beside: SVDQuant (arXiv 2411.05007)."""

from diffopt.formats.method import Method
from diffopt.formats.nvfp4 import BLOCKS, EXPORT_DTYPE, EXPORT_REASON, WEIGHTS

METHOD = Method(
    name="nvfp4_svdquant",
    weight=BLOCKS,
    input=BLOCKS,
    algorithm="svdquant",
    weight_bits=4.5,
    rank=32,
    rank_iterations=8,
    weights=WEIGHTS,
    export_dtype=EXPORT_DTYPE,
    export_reason=EXPORT_REASON,
)
