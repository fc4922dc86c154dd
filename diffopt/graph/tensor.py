"""Tensors as ONNX stores them: shape, type and little-endian bytes, 4-bit values two to a byte, the first one low."""

from dataclasses import dataclass

import onnx
import torch

KINDS = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
    torch.float64: onnx.TensorProto.DOUBLE,
    torch.int8: onnx.TensorProto.INT8,
    torch.uint8: onnx.TensorProto.UINT8,
    torch.int32: onnx.TensorProto.INT32,
    torch.int64: onnx.TensorProto.INT64,
    torch.bool: onnx.TensorProto.BOOL,
    torch.float8_e4m3fn: onnx.TensorProto.FLOAT8E4M3FN,
}


@dataclass(frozen=True)
class Tensor:
    name: str
    kind: int
    """onnx.TensorProto.DataType."""
    shape: tuple[int, ...]
    data: bytes

    def proto(self) -> onnx.TensorProto:
        return onnx.TensorProto(name=self.name, data_type=self.kind, dims=self.shape, raw_data=self.data)


def tensor(name: str, x: torch.Tensor) -> Tensor:
    """Of any device. Raises KeyError for a type that ONNX lacks."""
    return Tensor(name, KINDS[x.dtype], tuple(x.shape), _bytes(x))


def nibbles(name: str, kind: int, codes: torch.Tensor) -> Tensor:
    """4-bit values from their codes, 0 to 15, in an integer tensor with an even number of elements."""
    flat = codes.to(torch.uint8).reshape(-1)
    return Tensor(name, kind, tuple(codes.shape), _bytes(flat[::2] | (flat[1::2] << 4)))


def _bytes(x: torch.Tensor) -> bytes:
    flat = x.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).cpu().numpy().tobytes()
