"""What this machine has: the probes that enter fingerprints, and what `diffopt doctor` prints. Imports no torch."""

import os
import platform
import socket
from collections.abc import Callable, Iterable
from ctypes.util import find_library
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@cache
def package(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def gpus() -> tuple[dict[str, Any], ...]:
    """Name, compute capability and memory in bytes of each NVIDIA GPU that torch will see, in torch's order; `visible`
    is what CUDA_VISIBLE_DEVICES calls it."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed in ("", "-1"):  # hidden from torch, so not there
        return ()
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no pynvml, no driver or no permission: for diffopt all three are a machine without a GPU
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        found = tuple(
            {
                "name": pynvml.nvmlDeviceGetName(h),
                "capability": ".".join(map(str, pynvml.nvmlDeviceGetCudaComputeCapability(h))),
                "memory": int(pynvml.nvmlDeviceGetMemoryInfo(h).total),
                "visible": str(i),
                "uuid": pynvml.nvmlDeviceGetUUID(h),
            }
            for i, h in enumerate(handles)
        )
        return found if listed is None else visible(found, listed)
    finally:
        pynvml.nvmlShutdown()


def visible(there: tuple[dict[str, Any], ...], listed: str) -> tuple[dict[str, Any], ...]:
    """Those of the driver's GPUs that CUDA_VISIBLE_DEVICES lists, by index or by the beginning of a UUID, up to the first
    name that there is not, as CUDA reads it. A part of a GPU (MIG), which the driver does not list, counts as the first.
    """
    found = []
    for name in map(str.strip, listed.split(",")):
        match = [g for g in there if name == g["visible"] or (name.startswith("GPU-") and g["uuid"].startswith(name))]
        match = list(there) if name.startswith("MIG-") else match
        if not match:
            break
        found.append(match[0] | {"visible": name})
    return tuple(found)


def ram() -> int:
    """Bytes of memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def ram_free() -> int:
    """Bytes of it that a process can have now, as Linux tells; all of it where nothing does."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return ram()


def gpu_free() -> int | None:
    """Bytes of the first GPU's memory that no process has now; None where no driver tells."""
    if not (there := gpus()):
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # as above
        return None
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(there[0]["uuid"])).free)
    except (pynvml.NVMLError, KeyError):  # a part of a GPU has no such figure
        return None
    finally:
        pynvml.nvmlShutdown()


@cache
def cpu() -> dict[str, Any]:
    """Model name, and those instruction sets that decide which matrix kernels run."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {k.strip(): v.strip() for k, v in fields.items()}
    flags = set(fields.get("flags", "").split())
    known = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16"]
    return {
        "model": fields.get("model name", platform.processor() or platform.machine()),
        "machine": platform.machine(),
        "flags": [name for name in known if name in flags],
    }


def device() -> str:
    """The architecture that computes: a GPU's name and capability, else the CPU's instruction sets."""
    if found := gpus():
        return f"{found[0]['name']} sm{found[0]['capability']}"
    return "+".join(["cpu", cpu()["machine"], *cpu()["flags"]])


def tensorrt() -> dict[str, str] | None:
    """Flavour and version of the engine builder: TensorRT where its library is installed, else TensorRT-RTX.

    PyPI's `tensorrt` alone is a stub without the library, and is not taken for TensorRT. NVIDIA's image has the library among
    the system's.
    """
    there = find_spec("tensorrt") and (find_spec("tensorrt_libs") or find_library("nvinfer"))
    if there and (found := package("tensorrt")):
        return {"flavour": "tensorrt", "version": found}
    if find_spec("tensorrt_rtx") and find_spec("tensorrt_rtx_libs"):
        return {"flavour": "tensorrt_rtx", "version": package("tensorrt-rtx-cu13") or "unknown"}
    return None


def builder() -> dict[str, str] | None:
    """The same with what else decides a plan: TensorRT's are for the GPU that they were built on."""
    found = tensorrt()
    return found | {"gpu": device()} if found and found["flavour"] == "tensorrt" else found


def onnxruntime() -> str | None:
    return package("onnxruntime-gpu") or package("onnxruntime")


def machine() -> dict[str, Any]:
    """What timings belong to: this machine (its host name only as a hash), its processors and its GPU."""
    return {
        "host": sha256(socket.gethostname().encode()).hexdigest()[:8],
        "cpu": cpu()["model"],
        "cores": len(os.sched_getaffinity(0)),
        "gpus": [g["name"] for g in gpus()[:1]],  # the one that computes: which of several a sweep gave is no matter
    }


SLIMMING = ("torchao", "bitsandbytes")
"""Packages that keep the weights of text encoders in fewer bits."""

PROBES: dict[str, Callable[[], Any]] = {
    "numerics": lambda: {name: package(name) for name in ("torch", "diffusers", "transformers")} | {"device": device()},
    "modelopt": lambda: package("nvidia-modelopt"),
    "slimming": lambda: {name: package(name) for name in SLIMMING},
    "onnx": lambda: package("onnx"),
    "onnxruntime": onnxruntime,
    "tensorrt": builder,
    "machine": machine,
    "simulation": lambda: "compiled 1" if gpus() else None,  # the version of diffopt/runtimes/simulation.py's arithmetic
    "scorers": lambda: {name: package(name) for name in ("scikit-image", "pytorch-msssim", "torchmetrics", "open-clip-torch")},
}
SILENT = frozenset({"simulation"})
"""Probes that came when artifacts were in stores already, which they leave as they are on machines that they do not concern."""


@dataclass
class Environment:
    """The probes by name. A test hands in fixed ones."""

    probes: dict[str, Callable[[], Any]] = field(default_factory=lambda: dict(PROBES))

    def __getitem__(self, name: str) -> Any:
        return self.probes[name]()

    def of(self, names: Iterable[str]) -> dict[str, Any]:
        """What enters an identity: a probe of `SILENT` that finds nothing is left out of it."""
        found = {name: self[name] for name in names}
        return {name: value for name, value in found.items() if value is not None or name not in SILENT}
