"""NVFP4's fake quantization on a CPU, where modelopt has no kernel for it.

By definition (OCP microscaling's E2M1 values; NVIDIA's two-level scaling): a tensor has one FP32 scale
g = amax / (6 * 448), a block of 16 consecutive values one E4M3 scale s = e4m3(max|block| / 6 / g), and each value the
nearest of +-{0, 0.5, 1, 1.5, 2, 3, 4, 6} times s * g, ties to the even mantissa.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import modelopt.torch.quantization.tensor_quant as tensor_quant
import torch

E2M1_MAX, E4M3_MAX, BLOCK = 6.0, 448.0, 16
VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_MIDDLES = (VALUES[1:] + VALUES[:-1]) / 2
# bucketize puts a value equal to a boundary below it; a tie whose even neighbour is above needs a boundary just below.
_BOUNDARIES = _MIDDLES.clone()
_BOUNDARIES[1::2] = torch.nextafter(_MIDDLES[1::2], torch.zeros(3))


def e2m1(x: torch.Tensor) -> torch.Tensor:
    """The nearest E2M1 value, of any shape; beyond 6 it saturates."""
    return torch.sign(x) * VALUES[torch.bucketize(x.abs(), _BOUNDARIES)]


def e4m3(x: torch.Tensor) -> torch.Tensor:
    """The nearest E4M3 value, saturating at 448."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float()


def nvfp4(x: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    """`x` rounded to NVFP4 and back: any shape, blocks of 16 along the last axis, which is padded with zeros.

    `amax` is the tensor's calibrated absolute maximum (any shape; its largest element counts). Computes in FP32 and
    returns x's dtype.
    """
    padding = -x.shape[-1] % BLOCK
    blocks = torch.nn.functional.pad(x.float(), (0, padding)).unflatten(-1, (-1, BLOCK))
    tensor_scale = amax.float().max() / (E2M1_MAX * E4M3_MAX)
    if tensor_scale == 0:
        return torch.zeros_like(x)
    scale = e4m3(blocks.abs().amax(-1, keepdim=True) / E2M1_MAX / tensor_scale) * tensor_scale
    rounded = torch.where(scale == 0, 0, e2m1(blocks / torch.where(scale == 0, 1, scale)) * scale)  # NaN stays NaN
    return rounded.flatten(-2)[..., : x.shape[-1]].to(x.dtype)


@contextmanager
def simulated() -> Iterator[None]:
    """Within it, modelopt's dynamic block quantization of a CPU tensor is computed by `nvfp4`; undone afterwards."""
    kernel = tensor_quant.dynamic_block_quantize_op

    def dispatch(
        inputs: torch.Tensor,
        block: int,
        amax: torch.Tensor | None,
        bits: int,
        exponent: int,
        scale_bits: int,
        scale_exponent: int,
    ) -> torch.Tensor:
        if inputs.is_cuda:
            found: torch.Tensor = kernel(inputs, block, amax, bits, exponent, scale_bits, scale_exponent)
            return found
        if torch.onnx.is_in_onnx_export():  # the exporter emits the operator; its body is never part of the graph
            return inputs.clone()
        if (block, bits, exponent, scale_bits, scale_exponent) != (BLOCK, 4, 2, 8, 4) or amax is None:
            raise ValueError(f"no CPU arithmetic for blocks of {block} with {bits}-bit values and {scale_bits}-bit scales")
        return nvfp4(inputs, amax)

    tensor_quant.dynamic_block_quantize_op = dispatch
    try:
        yield
    finally:
        tensor_quant.dynamic_block_quantize_op = kernel
