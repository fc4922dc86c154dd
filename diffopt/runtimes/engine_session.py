"""One engine plan that computes on torch's tensors: nothing is copied, shapes are any that one of its profiles takes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from diffopt.errors import GateError
from diffopt.runtimes.bounds import Bounds, holding, misfit

TYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
    "FP8": torch.float8_e4m3fn,
}
"""torch's types by the names of TensorRT's."""
ALIGNED = 256
"""Bytes: TensorRT takes tensors and memory that begin at a multiple of it. torch's own do, a view within one may not."""


class Lane:
    """A stream of its own, in order with what torch computes before and after. On a CPU, where tests are, there is none."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def entered(self) -> Iterator[int]:
        """The stream's handle. What was allocated on torch's own stream may be let go after: that one waits."""
        if self.stream is None:
            yield 0
            return
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        yield int(self.stream.cuda_stream)
        current.wait_stream(self.stream)


class Scratch:
    """The memory in which engines compute, one after the other: as much as the neediest of their profiles takes.

    Grows only before it is first used: a CUDA graph remembers where it lies.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.size = 0
        self._block: torch.Tensor | None = None

    def reserve(self, size: int) -> None:
        assert self._block is None or size <= self.size
        self.size = max(self.size, size)

    @property
    def address(self) -> int:
        if self._block is None:
            self._block = torch.empty(self.size + ALIGNED, dtype=torch.uint8, device=self.device)
        return -(-self._block.data_ptr() // ALIGNED) * ALIGNED


class EngineSession:
    """Runs a deserialized engine, in the manner of a `cut_graph.Run`."""

    def __init__(self, engine: Any, context: Callable[[], Any], scratch: Scratch, lane: Lane, what: str):
        """`context` makes an execution context whose memory is given to it; `what` is the plan's name, for people."""
        self.engine, self.scratch, self.lane, self.what = engine, scratch, lane, what
        self._new = context
        self._contexts: dict[int, Any] = {}
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        types = {name: TYPES[engine.get_tensor_dtype(name).name] for name in names}
        inputs = [name for name in names if engine.get_tensor_mode(name).name == "INPUT"]
        self.inputs = {name: types[name] for name in inputs}
        self.outputs = {name: types[name] for name in names if name not in self.inputs}
        self.profiles: list[Bounds] = [self._bounds(i) for i in range(engine.num_optimization_profiles)]
        if (
            engine.streamable_weights_size
        ):  # of a plan that was built to stream them: as many stay on the GPU as it has room for
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        for i in range(engine.num_optimization_profiles):
            scratch.reserve(engine.get_device_memory_size_for_profile_v2(i))

    def __call__(self, inputs: Mapping[str, torch.Tensor], outputs: Sequence[str]) -> list[torch.Tensor]:
        """Raises GateError for shapes that no profile takes, and where TensorRT fails."""
        given = {name: self._given(inputs[name], dtype) for name, dtype in self.inputs.items()}
        shapes = {name: tuple(x.shape) for name, x in given.items()}
        index = holding(self.profiles, shapes)
        if index is None:
            raise GateError(misfit(self.profiles, shapes, self.what))
        with self.lane.entered() as stream:
            context = self._context(index, stream)
            for name, x in given.items():
                context.set_input_shape(name, shapes[name])
                context.set_tensor_address(name, x.data_ptr())
            made = {name: self._made(context, name) for name in self.outputs}
            for name, x in made.items():
                context.set_tensor_address(name, x.data_ptr())
            context.set_device_memory(self.scratch.address, self.scratch.size)
            if not context.execute_async_v3(stream):
                raise GateError(
                    f"tensorrt: {self.what} does not run (got {shapes}); see the run's log, and build the plan again"
                )
        return [made[name] for name in outputs]

    def _given(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The same tensor, where it lies on the device, in one piece and aligned as it is to be."""
        x = x.to(self.scratch.device, dtype).contiguous()
        return x.clone() if x.is_cuda and x.data_ptr() % ALIGNED else x

    def _made(self, context: Any, name: str) -> torch.Tensor:
        return torch.empty(tuple(context.get_tensor_shape(name)), dtype=self.outputs[name], device=self.scratch.device)

    def _context(self, index: int, stream: int) -> Any:
        """A context of each profile, made when it is first needed: changing that of one would cost at each change."""
        if index not in self._contexts:
            context = self._new()
            if index and not context.set_optimization_profile_async(index, stream):
                raise GateError(f"tensorrt: {self.what} has no profile {index} here (got none); build the plan again")
            self._contexts[index] = context
        return self._contexts[index]

    def _bounds(self, index: int) -> Bounds:
        found: dict[str, tuple[Sequence[int], Sequence[int]]] = {}
        for name in self.inputs:
            low = high = tuple(self.engine.get_tensor_shape(name))
            if -1 in low:
                low, _, high = (tuple(x) for x in self.engine.get_tensor_profile_shape(name, index))
            found[name] = low, high
        return found
