"""TensorRT without a GPU: the part of its interface that diffopt runs plans by, over plans that onnxruntime computes.

A plan is a text that names an ONNX file. Tensors are read and written at the addresses that are set, which are of the CPU's
memory; every call is recorded, and one that TensorRT would refuse fails. tests/test_tensorrt.py compares the names with those
of the real bindings.
"""

import ctypes
import json
from collections.abc import Mapping, Sequence
from enum import Enum, IntEnum, IntFlag
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from diffopt.artifact import EnginePlan, OnnxGraph
from diffopt.files.graph import OnnxGraphFile, Profile
from diffopt.files.plan import EnginePlanFile
from diffopt.graph import engine
from diffopt.runtimes.onnxruntime import settings

MARK = b"recorded "
VERSION = "1.0"
NEED = 1 << 12
"""Bytes of memory that an engine takes for each row of its largest call."""


class DataType(Enum):
    FLOAT = "float"
    INT64 = "int64"
    BOOL = "bool"


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(Enum):
    USER_MANAGED = 2


class CudaGraphStrategy(Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class EngineValidity(Enum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(IntFlag):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2


class ILogger:
    class Severity(IntEnum):
        ERROR = 1
        INFO = 3

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


class IRuntimeCache:
    def __init__(self, library: "Library"):
        self._library = library

    def deserialize(self, blob: bytes) -> bool:
        self._library.calls.append(("deserialize", bytes(blob)))
        return self._library.takes_kernels

    def serialize(self) -> bytes:
        return b"kernels"


class IRuntimeConfig:
    cuda_graph_strategy = CudaGraphStrategy.DISABLED

    def __init__(self, library: "Library"):
        self._library = library

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache(self._library)

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._library.calls.append(("cache", id(cache)))
        return True


class IExecutionContext:
    def __init__(self, made_by: "ICudaEngine"):
        self._engine, self._library = made_by, made_by._library
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = (0, 0)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        self._shapes.clear()
        return profile_index < self._engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        low, _, high = self._engine._profiles[self._profile][name]
        assert len(low) == len(shape)
        assert all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)), f"{name}: {shape}"
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        assert {*self._shapes} == {*self._engine._inputs}, "a shape of the outputs is asked for before all inputs have theirs"
        key = tuple(sorted(self._shapes.items()))
        if key not in self._engine._made:
            zeros = {n: np.zeros(s, self._engine._dtype(n)) for n, s in self._shapes.items()}
            found = self._engine._session.run([*self._engine._outputs], zeros)
            self._engine._made[key] = {n: x.shape for n, x in zip(self._engine._outputs, found, strict=True)}
        return tuple(self._engine._made[key][name])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory
        self._addresses[name] = memory
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size >= self._engine.get_device_memory_size_for_profile_v2(self._profile)
        self._memory = memory, size

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self._memory[0], "there is no memory to compute in"
        self._library.calls.append(("execute", self._engine._name, self._profile, self._memory[0], dict(self._addresses)))
        self._memory_view(*self._memory)[:] = 0xA5  # whatever else lay there is gone
        given = {n: self._at(n).copy() for n in self._engine._inputs}
        for name, x in zip(self._engine._outputs, self._engine._session.run([*self._engine._outputs], given), strict=True):
            self._at(name)[...] = x
        self._memory = 0, 0
        return self._library.runs

    def _at(self, name: str) -> np.ndarray:
        shape, dtype = self.get_tensor_shape(name), self._engine._dtype(name)
        return self._memory_view(self._addresses[name], int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)

    def _memory_view(self, address: int, size: int) -> np.ndarray:
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class ICudaEngine:
    streamable_weights_size = 0
    weight_streaming_budget_v2 = 0

    def __init__(self, library: "Library", path: Path, profiles: Sequence[Mapping[str, Sequence[Sequence[int]]]]):
        self._library, self._name = library, path.name
        options, disabled = settings(OnnxGraphFile.read(path.parent))
        cpu = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(str(path), options, providers=cpu, disabled_optimizers=disabled)
        self._inputs = {x.name: x for x in self._session.get_inputs()}
        self._outputs = {x.name: x for x in self._session.get_outputs()}
        static = {n: [x.shape] * 3 for n, x in self._inputs.items() if all(isinstance(d, int) for d in x.shape)}
        self._profiles = [static | dict(p) for p in profiles or [{}]]
        self._made: dict[Any, dict[str, tuple[int, ...]]] = {}

    @property
    def num_io_tensors(self) -> int:
        return len(self._inputs) + len(self._outputs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(({**self._inputs, **self._outputs})[name].type[len("tensor(") : -1])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else -1 for d in ({**self._inputs, **self._outputs})[name].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Sequence[int]]:
        assert -1 in self.get_tensor_shape(name)
        return [*self._profiles[profile_index][name]]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return NEED * max(high[0] for _, _, high in self._profiles[profile_index].values() if high)

    def get_weight_streaming_automatic_budget(self) -> int:
        return self.streamable_weights_size // 2

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig(self._library)

    def create_execution_context(self, how: Any) -> IExecutionContext:
        self._library.calls.append(("context", self._name, how))
        assert isinstance(how, IRuntimeConfig) == (self._library.flavour == "tensorrt_rtx")
        assert isinstance(how, IRuntimeConfig) or how is ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self)

    def _dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype({"FLOAT": "float32", "BOOL": "bool"}.get(self.get_tensor_dtype(name).name, "int64"))


class Runtime:
    def __init__(self, library: "Library", logger: Any):
        self._library, self._logger = library, logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        serialized_engine = bytes(serialized_engine)
        if not serialized_engine.startswith(MARK):
            self._logger.log(ILogger.Severity.ERROR, "magic tag does\n not match")
            return None
        told = json.loads(serialized_engine[len(MARK) :])
        return ICudaEngine(self._library, Path(told["graph"]), told["profiles"])

    def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
        return self._library.validity


COMMON = (DataType, TensorIOMode, ExecutionContextAllocationStrategy, ILogger, IExecutionContext, ICudaEngine, Runtime)
"""What both flavours have."""
OF_RTX = (CudaGraphStrategy, EngineValidity, EngineInvalidityDiagnostics, IRuntimeCache, IRuntimeConfig)
"""What TensorRT-RTX alone has of this, and their methods `get_engine_validity` and `create_runtime_config` besides."""


class Library:
    """Stands for the module of one flavour; `install` puts it where diffopt looks."""

    def __init__(self, flavour: str = "tensorrt_rtx"):
        self.flavour = flavour
        self.calls: list[tuple[Any, ...]] = []
        self.validity = (EngineValidity.VALID, 0)
        self.runs = True
        self.takes_kernels = True
        there = [c for c in COMMON if c is not Runtime] + ([*OF_RTX] if flavour == "tensorrt_rtx" else [])
        named = {c.__name__: c for c in there} | {"__version__": VERSION}
        self.module = SimpleNamespace(**named, Runtime=lambda logger: Runtime(self, logger))

    def install(self, monkeypatch: Any) -> "Library":
        from diffopt.machine import environment

        monkeypatch.setattr(engine, "module", lambda flavour: self.module)
        monkeypatch.setattr(environment, "tensorrt", lambda: {"flavour": self.flavour, "version": VERSION})
        return self

    def executed(self) -> list[tuple[Any, ...]]:
        """Of each execution the file, the profile, where its memory lay, and where its tensors."""
        return [c[1:] for c in self.calls if c[0] == "execute"]


def plan(graph: Path, profiles: Sequence[Profile]) -> bytes:
    """The plan of an ONNX file."""
    shapes = [{n: [s["min"], s["opt"], s["max"]] for n, s in p.items()} for p in profiles]
    return MARK + json.dumps({"graph": str(graph), "profiles": shapes}).encode()


def write(graph: OnnxGraph, out: Path, flavour: str = "tensorrt_rtx") -> None:
    """What the stage would build of a graph, with the shapes of its graph.json as the only profile."""
    for part in graph.by_backbone().values():
        head, folder = OnnxGraphFile.read(part.path), out / part.path.relative_to(graph.path)
        folder.mkdir(exist_ok=True)
        head.write(folder)
        for file in head.parts:
            text = plan(part.path / file.file, [file.profile] if file.profile else [])
            (folder / file.file).with_suffix(".plan").write_bytes(text)
    head = OnnxGraphFile.read(graph.path)
    head.write(out)
    EnginePlanFile(
        builder=flavour,
        version=VERSION,
        target="this machine",
        profiles=(head.profile,) if head.profile else (),
        builder_optimization_level=0,
        bytes=sum(p.stat().st_size for p in out.rglob("*.plan")),
        format=head.format,
    ).write(out)


def planned(b: Any, graph: OnnxGraph, flavour: str = "tensorrt_rtx") -> EnginePlan:
    context = b.context()
    write(graph, context.out, flavour)
    return EnginePlan(context.out, "plan")
