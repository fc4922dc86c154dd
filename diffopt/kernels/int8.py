"""A linear layer in INT8: weights by output channel, inputs by one static scale, SmoothQuant's scales before it."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from diffopt.kernels.kernel import Buffer, Kernel

LARGEST = 127.0


class Int8Linear(Kernel):
    """y = x W^T + b, x smoothed and rounded. It computes what modelopt's fake quantization simulates: the same codes, the
    products added up exactly."""

    kind: ClassVar[str] = "int8"
    cast: ClassVar[frozenset[str]] = frozenset({"bias", "smoothing"})
    weight: torch.Tensor
    """Codes [out, in]."""
    scale: torch.Tensor
    """FP32 [out]: what a sum of products is multiplied by."""
    inverse: torch.Tensor
    """FP32 []: 127 / amax of the input."""
    smoothing: torch.Tensor | None
    """[in], in the layer's dtype: what the input is multiplied by first."""
    bias: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        weight_amax: torch.Tensor,
        input_amax: torch.Tensor,
        smoothing: torch.Tensor | None = None,
    ):
        """`weight` is the layer's own [out, in], smoothed already where there is `smoothing`; `weight_amax` has one number for
        each output channel, or one."""
        super().__init__()
        amax = weight_amax.detach().float().reshape(-1, 1).to(weight.device)
        entering = input_amax.detach().float().reshape(()).to(weight.device)
        self.register_buffer("weight", rounded(weight.detach(), inverse(amax)))
        self.register_buffer("scale", (amax.flatten().expand(len(weight)) / LARGEST * (entering / LARGEST)).contiguous())
        self.register_buffer("inverse", inverse(entering))
        self.register_buffer("smoothing", None if smoothing is None else smoothing.detach().flatten())
        self.register_buffer("bias", None if bias is None else bias.detach())

    @classmethod
    def layout(cls, layer: Any) -> dict[str, Buffer]:
        out, depth = layer.out_features, layer.in_features
        return {
            "weight": Buffer((out, depth), torch.int8),
            "scale": Buffer((out,), torch.float32),
            "inverse": Buffer((), torch.float32),
            "smoothing": Buffer((depth,), None, needed=False),
            "bias": Buffer((out,), None, needed=layer.bias is not None),
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(self.enter(x), x.dtype)

    def enter(self, x: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Codes of x, which may be the part of the input that begins at `start`."""
        smoothed = x if self.smoothing is None else x * self.smoothing[start : start + x.shape[-1]]
        return rounded(smoothed, self.inverse)

    def product(self, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """[..., in] INT8 to [..., out] in `dtype`."""
        rows = codes.reshape(-1, codes.shape[-1])
        out: torch.Tensor = torch.ops.diffopt.int8_linear(rows, self.weight, self.scale, self.bias, dtype)
        return out.reshape(*codes.shape[:-1], -1)


class JoinedInt8Linear(Int8Linear):
    """Several layers of one input in one product, each output with its own scale, as they have it apart."""

    def __init__(self, layers: Sequence[Int8Linear]):
        """Raises ValueError for layers whose inputs are rounded or smoothed differently."""
        torch.nn.Module.__init__(self)
        first = layers[0]
        if not all(_same(layer.smoothing, first.smoothing) and _same(layer.inverse, first.inverse) for layer in layers):
            raise ValueError("their inputs are smoothed or rounded by different scales")
        zeros = [torch.zeros_like(layer.scale) if layer.bias is None else layer.bias.float() for layer in layers]
        dtype = next((layer.bias.dtype for layer in layers if layer.bias is not None), torch.float32)
        self.register_buffer("weight", torch.cat([layer.weight for layer in layers]))
        self.register_buffer("scale", torch.cat([layer.scale for layer in layers]))
        self.register_buffer("bias", torch.cat(zeros).to(dtype))
        self.register_buffer("inverse", first.inverse)
        self.register_buffer("smoothing", first.smoothing)


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def inverse(amax: torch.Tensor) -> torch.Tensor:
    """Codes of a number. A tensor divided by one, as modelopt does: torch makes another last bit of a number by a tensor."""
    return torch.full_like(amax, LARGEST) / amax


def rounded(x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """To INT8, ties to even, what is too large to the largest."""
    return (x.float() * inverse).round().clamp(-LARGEST - 1, LARGEST).to(torch.int8)


@torch.library.custom_op("diffopt::int8_linear", mutates_args=())
def int8_linear(
    codes: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """`codes` INT8 [rows, in] by `weight` INT8 [out, in], times `scale` FP32 [out], plus the bias: [rows, out] in `dtype`."""
    if codes.is_cuda:
        from diffopt.kernels import int8_tma, int8_triton

        by = int8_tma if int8_tma.fits(codes, weight, dtype) else int8_triton
        found: torch.Tensor = by.product(codes, weight, scale, bias, dtype)
        return found
    # Exact on every CPU: torch._int_mm's sums saturate on those without VNNI.
    out = (codes.double() @ weight.double().t()).float() * scale
    return (out if bias is None else out + bias.float()).to(dtype)


@int8_linear.register_fake
def _(
    codes: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    return codes.new_empty((len(codes), len(weight)), dtype=dtype)
