"""Clocks, power and temperature of the GPU that computes, and the versions of what computes. Imports no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffopt.files.bench import GpuState
from diffopt.machine.environment import gpus, package


def state() -> GpuState | None:
    """As the driver tells now; None where there is no GPU, or the driver does not tell, as of a part of one (MIG)."""
    if not gpus():
        return None
    with _driver() as nvml:
        try:
            gpu = nvml.nvmlDeviceGetHandleByUUID(gpus()[0]["uuid"])
            return GpuState(
                sm_clock=nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
                max_sm_clock=nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
                memory_clock=nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
                power=nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
                power_limit=nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000,
                temperature=nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
            )
        except nvml.NVMLError:
            return None


def versions() -> dict[str, str | None]:
    """Of the libraries; of the driver where there is a GPU. torch adds CUDA's and cuDNN's own."""
    found = {name: package(name) for name in ("torch", "triton", "diffusers", "nvidia-modelopt")}
    found["onnxruntime"] = package("onnxruntime-gpu") or package("onnxruntime")
    if gpus():
        with _driver() as nvml:
            found["driver"] = str(nvml.nvmlSystemGetDriverVersion())
    return found


@contextmanager
def _driver() -> Iterator[Any]:
    """`gpus()` has found some by it, so that it is there."""
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()
