"""The engine builder: TensorRT where its library is installed, else TensorRT-RTX, which builds without a GPU."""

import ctypes
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffopt.errors import GateError, PlanError
from diffopt.files.graph import Profile
from diffopt.machine.environment import tensorrt

log = logging.getLogger("diffopt")


@dataclass(frozen=True)
class Built:
    plan: bytes
    flavour: str
    version: str
    target: str
    """The GPUs that can run the plan."""
    profiles: list[Profile]
    """For each profile and dynamic input its shapes `min`, `opt` and `max`; static graphs have none."""


def build(graph: Path, level: int, profile: Profile | None = None) -> Built:
    """Build an engine plan from an ONNX file, strongly typed: the graph's own types decide every precision.

    `profile` says which shapes a graph with dynamic axes must take; without one such axes are fixed to 1. Raises
    GateError with the parser's or builder's own words when the graph is refused.
    """
    found = tensorrt()
    if found is None:
        raise PlanError("build: no engine builder is installed (got none); `pip install 'diffopt[tensorrt-rtx]'`")
    trt = module(found["flavour"])
    logger = _Logger(trt)
    builder = trt.Builder(logger.sink)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger.sink)
    if not parser.parse_from_file(str(graph)):
        reasons = "; ".join(" ".join(parser.get_error(i).desc().split()) for i in range(parser.num_errors))
        raise GateError(f"build: {found['flavour']} does not parse the graph (got {reasons}); see the run's log")
    config = builder.create_builder_config()
    config.builder_optimization_level = level
    profiles = _profiles(builder, config, network, profile or {})
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise GateError(f"build: {found['flavour']} builds no plan (got {'; '.join(logger.errors)[:500]}); see the run's log")
    target = (
        "any GPU of compute capability 7.5, 8.0, 8.6, 8.9 or 12.x"
        if found["flavour"] == "tensorrt_rtx"
        else "GPUs like this machine's"
    )
    return Built(bytes(plan), found["flavour"], trt.__version__, target, profiles)


def _profiles(builder: Any, config: Any, network: Any, wanted: Profile) -> list[Profile]:
    """One profile of all dynamic inputs, where there are any."""
    shapes: dict[str, Mapping[str, Sequence[int]]] = {}
    for i in range(network.num_inputs):
        x = network.get_input(i)
        if -1 in tuple(x.shape):
            fixed = [1 if d == -1 else d for d in x.shape]
            shapes[x.name] = wanted.get(x.name) or dict.fromkeys(("min", "opt", "max"), fixed)
    if not shapes:
        return []
    profile = builder.create_optimization_profile()
    for name, s in shapes.items():
        profile.set_shape(name, s["min"], s["opt"], s["max"])
    config.add_optimization_profile(profile)
    return [shapes]


def module(flavour: str) -> Any:
    """TensorRT's Python module, `tensorrt` or `tensorrt_rtx`."""
    if flavour == "tensorrt":
        return importlib.import_module("tensorrt")
    # PyPI has the bindings and, inside onnxruntime's provider, the libraries; loaded first, their names satisfy the import.
    spec = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations)))
    for pattern in ("libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*"):
        ctypes.CDLL(str(next(folder.glob(pattern))), mode=ctypes.RTLD_GLOBAL)
    return importlib.import_module("tensorrt_rtx_bindings")


def logger(trt: Any) -> "_Logger":
    """`.sink` for the objects of this TensorRT module, and `.errors`, what they said was wrong so far."""
    return _Logger(trt)


class _Logger:
    """Errors are kept for the user, the rest goes to the log at debug level."""

    def __init__(self, trt: Any):
        errors: list[str] = []

        class Sink(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if int(severity) <= int(trt.ILogger.Severity.ERROR):
                    errors.append(" ".join(message.split()))
                if int(severity) <= int(trt.ILogger.Severity.INFO):
                    log.debug("%s", message)

        self.errors = errors
        self.sink = Sink()
