"""The ONNX file, written tensor by tensor: a graph of many gigabytes is never in memory as a whole."""

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
    """`model.onnx` at `path`, with its weights in it or, beyond LIMIT, beside it in `model.onnx.data`."""

    def __init__(self, path: Path):
        self.path = path
        self.data = path.with_name(f"{path.name}.data")
        self.bytes = 0
        """Of all tensors."""
        self.initializers: list[onnx.TensorProto] = []
        self._weights = self.data.open("wb")

    def add(self, tensor: Tensor) -> None:
        """Append an initializer; its bytes are on disk afterwards, unless they are few."""
        self.bytes += len(tensor.data)
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

    def names(self) -> set[str]:
        return {i.name for i in self.initializers}

    def close(self, model: onnx.ModelProto) -> None:
        """Write `model`, which gets the initializers."""
        self._weights.close()
        model.graph.initializer.extend(self.initializers)
        if self.bytes < LIMIT:
            onnx.load_external_data_for_model(model, str(self.path.parent))
            for proto in model.graph.initializer:
                proto.ClearField("data_location")
                proto.ClearField("external_data")
            self.data.unlink()
        self.path.write_bytes(model.SerializeToString())
