"""Which GPUs an engine plan runs on, by the library that built it. Imports neither torch nor TensorRT."""

from collections.abc import Mapping, Sequence
from typing import Any

RTX = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities of `tensorrt_rtx.ComputeCapability` in TensorRT-RTX 1.7: no data-centre GPU since the A100."""


def unfit(flavour: str, gpus: Sequence[Mapping[str, Any]]) -> str | None:
    """Why no plan of this flavour runs on the first GPU, as a part of a sentence about it; None where one does."""
    if not gpus:
        return "runs engine plans on an NVIDIA GPU, and there is none (got tensorrt)"
    gpu = gpus[0]
    if flavour != "tensorrt_rtx" or gpu["capability"] in RTX:
        return None
    return (
        f"is TensorRT-RTX here, which runs on GPUs of compute capability {', '.join(RTX[:-1])} and {RTX[-1]} "
        f"(got {gpu['name']} with {gpu['capability']})"
    )
