"""NVFP4: E2M1 values in blocks of 16 with an E4M3 scale each and one FP32 scale per tensor, weights and inputs."""

from typing import Any

from diffopt.formats.method import Method, Weights

BLOCKS: dict[str, Any] = {
    "num_bits": (2, 1),
    "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)},
    "axis": None,
}
WEIGHTS: tuple[Weights, ...] = ("local_hessian", "mse", "four_over_six", "max")
EXPORT_DTYPE, EXPORT_REASON = "float16", "TensorRT's block quantization works on 16-bit tensors only"

METHOD = Method(
    name="nvfp4",
    weight=BLOCKS,
    input=BLOCKS,
    algorithm="max",
    weight_bits=4.5,
    weights=WEIGHTS,
    ranges=("max", "headroom", "full"),
    export_dtype=EXPORT_DTYPE,
    export_reason=EXPORT_REASON,
)
