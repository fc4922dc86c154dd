"""MXFP8: E4M3 values in blocks of 32 with a power-of-two scale each (OCP microscaling); nothing to calibrate."""

from typing import Any

from diffopt.formats.method import Method
from diffopt.formats.nvfp4 import EXPORT_DTYPE, EXPORT_REASON

BLOCKS: dict[str, Any] = {
    "num_bits": (4, 3),
    "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)},
    "axis": None,
}

METHOD = Method(
    name="mxfp8",
    weight=BLOCKS,
    input=BLOCKS,
    algorithm=None,
    weight_bits=8.25,
    export_dtype=EXPORT_DTYPE,
    export_reason=EXPORT_REASON,
    attention=False,
)
