"""`diffopt doctor`: what this machine can calibrate, build and run, and why not."""

import os
import platform
import shutil
import sys
from importlib.metadata import entry_points
from pathlib import Path

from diffopt import __version__, formats
from diffopt.cli.arguments import Parser
from diffopt.errors import DiffoptError, PlanError
from diffopt.machine import engine_gpus, environment, installation
from diffopt.machine.environment import package
from diffopt.runtimes import RUNTIMES

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "nvidia-modelopt",
    "onnx",
    "onnxruntime-gpu",
    "hydra-core",
    "accelerate",
    "peft",
    "open-clip-torch",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "hydra-joblib-launcher",
    "hydra-submitit-launcher",
    "hydra-ray-launcher",
    "hydra-optuna-sweeper",
)


def parser() -> Parser:
    return Parser("diffopt doctor", description="What this machine can calibrate, build and run.")


def command(arguments: list[str]) -> None:
    parser().parse_args(arguments)
    print("\n".join(lines()))


def lines() -> list[str]:
    points = entry_points(group=installation.STAGES)
    flaw = installation.flaw(points)
    cpu, gpus, builder = environment.cpu(), environment.gpus(), environment.tensorrt()
    found = [
        f"diffopt {__version__}, Python {platform.python_version()} ({sys.executable})",
        f"code      {installation.CODE}{_elsewhere()}",
        *([flaw] if flaw else _idle_stages() if installation.others(points) else []),
        f"CPU       {cpu['model']}, {len(os.sched_getaffinity(0))} cores, {' '.join(cpu['flags']) or 'no vector extensions'}",
        *(f"GPU       {g['name']}, compute capability {g['capability']}, {g['memory'] >> 30} GiB" for g in gpus),
        *([] if gpus else ["GPU       none"]),
        f"engine    {' '.join(builder.values()) if builder else 'none'}",
        f"disk      {shutil.disk_usage(Path.cwd()).free >> 30} GiB free here",
        "",
        *(f"{name:28} {package(name) or '-'}" for name in PACKAGES),
        "",
        f"{'format':14} {'calibrate':12} {'engine plan':12} " + " ".join(f"{name:12}" for name in RUNTIMES),
    ]
    for name in sorted(formats.METHODS):
        try:
            method = formats.method(name)
        except DiffoptError as e:  # another package's
            found.append(str(e))
            continue
        native = bool(gpus) or not method.blockwise
        cells = ["yes" if native else "simulated", "yes" if builder else "no", *(_cell(n, method.name) for n in RUNTIMES)]
        found.append(f"{method.name:14} " + " ".join(f"{c:12}" for c in cells))
    if not builder:
        found += ["", "No engine plans: pip install 'diffopt[tensorrt-rtx]' builds them without a GPU."]
    return found


def _idle_stages() -> list[str]:
    """A line for each stage of another package that no plan can come to, or for the one that cannot be loaded.

    Ours that another hides are as its package wants it.
    """
    from diffopt.jobs.reach import unreached
    from diffopt.registry import described
    from diffopt.stage import installed

    try:
        found = installed()
    except PlanError as e:
        return str(e).splitlines()
    theirs = installation.others(point for point, _ in found)
    points = {made.name: point for point, made in found if point in theirs}
    return [
        f"stages: {name} never runs (got {described(points[name])}): it {why}"
        for name, why in unreached([made for _, made in found]).items()
        if name in points
    ]


def _elsewhere() -> str:
    there = installation.installed()
    return f", not what is installed: {there}" if there and there != installation.CODE else ""


def _cell(runtime: str, name: str) -> str:
    if runtime == "onnxruntime" and not environment.onnxruntime():
        return "not installed"
    builder = environment.tensorrt()
    if runtime == "tensorrt" and not builder:
        return "not installed"
    if runtime in ("native", "tensorrt") and not environment.gpus():
        return "no GPU"
    if runtime == "tensorrt" and builder and engine_gpus.unfit(builder["flavour"], environment.gpus()):
        return "other GPUs"
    if name in RUNTIMES[runtime].kernels:
        return "kernels"
    return "simulated" if RUNTIMES[runtime].simulates else "no"
