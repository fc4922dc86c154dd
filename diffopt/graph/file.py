"""The ONNX file, written tensor by tensor: a graph of many gigabytes is never in memory as a whole."""

from collections.abc import Mapping
from pathlib import Path

import onnx

from diffopt.graph.tensor import Tensor

INLINE = 1024
"""Bytes up to which a tensor stays in the graph: runtimes want shapes and scales there."""
PAGE = 4096
"""Runtimes map tensors into memory, which starts at a page."""
LIMIT = 2**31 - 64 * 2**20
"""Bytes of weights that go into the graph's own file. Protobuf ends at 2 GiB; the rest is left to nodes."""


class GraphFile:
    """`model.onnx` at `path`, with its weights in it or, beyond LIMIT, beside it in `model.onnx.data`.

    A graph that is cut into parts is several files, which share the one with the weights.
    """

    def __init__(self, path: Path):
        self.path = path
        self.data = path.with_name(f"{path.name}.data")
        self.sizes: dict[str, int] = {}
        """Bytes of every tensor, by name."""
        self.initializers: list[onnx.TensorProto] = []
        self._weights = self.data.open("wb")

    def add(self, tensor: Tensor) -> None:
        """Append an initializer; its bytes are on disk afterwards, unless they are few."""
        self.sizes[tensor.name] = len(tensor.data)
        if len(tensor.data) <= INLINE:
            self.initializers.append(tensor.proto())
            return
        self._weights.write(b"\0" * (-self._weights.tell() % PAGE))
        proto = onnx.TensorProto(name=tensor.name, data_type=tensor.kind, dims=tensor.shape)
        proto.data_location = onnx.TensorProto.EXTERNAL
        places = {"location": self.data.name, "offset": self._weights.tell(), "length": len(tensor.data)}
        proto.external_data.extend(onnx.StringStringEntryProto(key=k, value=str(v)) for k, v in places.items())
        self._weights.write(tensor.data)
        self.initializers.append(proto)

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(self.sizes.values())

    def close(self, model: onnx.ModelProto) -> None:
        """Write `model`, which gets the initializers."""
        self._weights.close()
        self._write(self.path, model, self.initializers)
        self._drop()

    def close_parts(self, models: Mapping[str, onnx.ModelProto]) -> None:
        """Write models by their file names, each with the initializers that it reads."""
        self._weights.close()
        for name, model in models.items():
            read = {i for node in model.graph.node for i in node.input}
            self._write(self.path.with_name(name), model, [i for i in self.initializers if i.name in read])
        self._drop()

    def _write(self, path: Path, model: onnx.ModelProto, initializers: list[onnx.TensorProto]) -> None:
        model.graph.initializer.extend(initializers)
        if self.bytes < LIMIT:
            onnx.load_external_data_for_model(model, str(self.path.parent))
            for proto in model.graph.initializer:
                proto.ClearField("data_location")
                proto.ClearField("external_data")
        path.write_bytes(model.SerializeToString())

    def _drop(self) -> None:
        if self.bytes < LIMIT:
            self.data.unlink()
