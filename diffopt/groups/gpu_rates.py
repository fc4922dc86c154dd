"""Peak rates of matrix products on GPUs, from NVIDIA's data sheets: an upper bound for planning, not a measurement.

Dense tensor cores, 10^12 multiplications and additions a second, FP32 (INT32) accumulation, boost clock:
    h100      H100 SXM data sheet: BF16 989, FP8 1979, INT8 1979; no FP4
    l40s      L40S data sheet: FP16 362, FP8 733, INT8 733; no FP4
    b200      HGX B200 data sheet, an eighth of it without sparsity: BF16 2250, FP8 4500, INT8 4500, FP4 9000
    rtx5090   RTX Blackwell architecture white paper, table of RTX 5090: FP16 209.5, FP8 419, INT8 838, FP4 1676
A product also moves memory, and a denoising step has more than products: see `share`.
"""

from typing import Literal

Gpu = Literal["h100", "l40s", "b200", "rtx5090"]

PLAIN = "full"

PEAK: dict[str, dict[str, float]] = {
    "h100": {PLAIN: 989, "fp8": 1979, "int8": 1979, "int8_sq": 1979},
    "l40s": {PLAIN: 362, "fp8": 733, "int8": 733, "int8_sq": 733},
    "b200": {PLAIN: 2250, "fp8": 4500, "mxfp8": 4500, "int8": 4500, "int8_sq": 4500, "nvfp4": 9000},
    "rtx5090": {PLAIN: 209.5, "fp8": 419, "mxfp8": 419, "int8": 838, "int8_sq": 838, "nvfp4": 1676},
}


def share(gpu: str, name: str) -> float:
    """Estimated time of a layer's product in the format `name`, as a share of its time in 16 bits on the same GPU.

    Compute alone: no memory traffic, no quantizing of inputs, no attention. Raises KeyError where the GPU's tensor cores
    have no such format.
    """
    return PEAK[gpu][PLAIN] / PEAK[gpu][name]
