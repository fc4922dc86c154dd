"""What of a runtime, and of the contenders of a bench, is refused before anything runs: a line each."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffopt import formats
from diffopt.artifact import Artifact, EnginePlan, OnnxGraph
from diffopt.groups.cut import cuts
from diffopt.groups.eval import OF_GRAPHS
from diffopt.kernels.capability import KIND, shortfall
from diffopt.machine import engine_gpus
from diffopt.machine.environment import Environment, gpus
from diffopt.quality.limit import PARITY
from diffopt.runtimes import RUNTIMES
from diffopt.view import Choices

RUNS: dict[type[Artifact], tuple[str, str]] = {OnnxGraph: ("an ONNX graph", "onnx"), EnginePlan: ("an engine plan", "tensorrt")}
"""What runtimes of graphs run, and the option of `export` that makes it."""
NEEDS = {"fp8": "fp8", "w4a8_awq": "fp8", "nvfp4": "nvfp4", "mxfp8": "mxfp8"}
"""Kinds of kernels that not every GPU has on which plans run, as diffopt/kernels/capability.py has them."""


def run(choices: Choices, environment: Environment) -> Iterator[str]:
    """Why the chosen runtime cannot run what is chosen, or not here."""
    if choices.eval is None:
        return
    runtime = RUNTIMES[choices.eval.runtime]
    name = choices.format.name if choices.format else None
    if name not in runtime.kernels and not runtime.simulates:
        yield f"eval.runtime: {runtime.name} has no kernels for {name} (got {runtime.name}); set eval.runtime=torch"
    elif runtime.name == "native" and (reason := _no_kernels(name, gpus())):
        yield f"eval.runtime: {reason}; set eval.runtime=torch, which simulates"
    if runtime.name == "native" and name is None and PARITY in choices.eval.gates:
        yield (
            f"eval.gates.{PARITY}: without a format nothing is simulated, so there is nothing to compare with "
            f"(got {choices.eval.gates[PARITY]!r}); choose format=OPTION, or drop it"
        )
    if reason := runtime.unfit():
        yield f"eval.runtime: {reason} (got {runtime.name}); set eval.runtime=torch"
    if runtime.of_graph:
        yield from _graphs(choices, environment, runtime.name, "eval.runtime", "set eval.runtime=torch")


def benched(choices: Choices, environment: Environment) -> Iterator[str]:
    """Contenders that this machine, or the format, cannot have: a line each."""
    there = choices.eval.bench if choices.eval else []
    name = choices.format.name if choices.format else None
    for way in there:
        if way == "compiled" and not gpus():
            yield "eval.bench: blocks are compiled for an NVIDIA GPU, and there is none (got compiled); leave it out"
        if way == "native" and name is None:
            yield "eval.bench: native computes a format by its kernels, and none is chosen (got native); choose format=OPTION"
        elif way in RUNTIMES and name not in RUNTIMES[way].kernels:
            with_kernels = ", ".join(sorted(f for f in RUNTIMES[way].kernels if f))
            yield f"eval.bench: {way} has no kernels for {name} (got {way}); leave it out, or choose one of {with_kernels}"
        elif way == "native" and (reason := _no_kernels(name, gpus())):
            yield f"eval.bench: {reason}; leave it out"
        if way in OF_GRAPHS:
            yield from _graphs(choices, environment, way, "eval.bench", f"leave {way} out of eval.bench")


def _no_kernels(format: str | None, found: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the native runtime has no kernels for a format on this machine; None where it has."""
    if not found:
        return "native compiles kernels for an NVIDIA GPU, and there is none (got native)"
    gpu = found[0]
    reason = shortfall(KIND[format] if format else None, gpu["name"], tuple(map(int, gpu["capability"].split("."))))
    return reason and f"{format or 'native'} {reason}"


def _graphs(choices: Choices, environment: Environment, way: str, where: str, otherwise: str) -> Iterator[str]:
    """What a runtime of graphs needs of the choices and of the machine. `where` names the field that asks for it."""
    if way == "tensorrt":
        yield from _engines(choices, environment, where, otherwise)
    elif way == "onnxruntime" and environment["onnxruntime"] is None:
        yield f"{where}: onnxruntime is not installed (got onnxruntime); `pip install onnxruntime-gpu`"
    if choices.cache and not cuts(choices):
        yield (
            f"cache: {way} runs a graph that is cut at blocks which are chosen beforehand, but "
            f"{choices.cache.model_dump()['method']} decides while it runs (got {where}={way}); "
            f"choose cache=cachify, or {otherwise}"
        )
    what, option = RUNS[RUNTIMES[way].runs]
    if choices.export is None or choices.export.kind != "graph":
        yield f"export: the {way} runtime runs {what} (got no export); choose export={option}"
    elif way == "onnxruntime" and (choices.export.high_precision_dtype or (choices.model and choices.model.dtype)) != "float32":
        yield (
            "export.high_precision_dtype: the onnxruntime runtime runs float32 graphs on a CPU (got another); "
            "set export.high_precision_dtype=float32"
        )


def _engines(choices: Choices, environment: Environment, where: str, otherwise: str) -> Iterator[str]:
    """TensorRT, a GPU that it runs on, and one that multiplies in the format."""
    found, there = environment["tensorrt"], gpus()
    if found is None:
        if not (choices.export and choices.export.engine):  # which says so itself
            yield f"{where}: no TensorRT is installed (got tensorrt); `pip install 'diffopt[tensorrt-rtx]'`, or {otherwise}"
        return
    if reason := engine_gpus.unfit(found["flavour"], there):
        yield f"{where}: tensorrt {reason}; {otherwise}"
        return
    for method in formats.methods(choices.format) if choices.format else ():
        kind = NEEDS.get(KIND.get(method.name, method.name))
        if kind and (reason := shortfall(kind, there[0]["name"], tuple(map(int, there[0]["capability"].split("."))))):
            yield f"{where}: {method.name} {reason}; {otherwise}"
