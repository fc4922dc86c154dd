"""A linear layer in INT8: weights by output channel, inputs by one static scale, SmoothQuant's scales before it."""

import torch

LARGEST = 127.0


class Int8Linear(torch.nn.Module):
    """y = x W^T + b, x smoothed and rounded. It computes what modelopt's fake quantization simulates: the same codes, the
    products added up exactly."""

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
        self.register_buffer("weight", rounded(weight.detach(), LARGEST / amax))
        self.register_buffer("scale", (amax.flatten().expand(len(weight)) / LARGEST * (entering / LARGEST)).contiguous())
        self.register_buffer("inverse", LARGEST / entering)
        self.register_buffer("smoothing", None if smoothing is None else smoothing.detach().flatten())
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        rows = rows if self.smoothing is None else rows * self.smoothing
        out: torch.Tensor = torch.ops.diffopt.int8_linear(
            rounded(rows, self.inverse), self.weight, self.scale, self.bias, x.dtype
        )
        return out.reshape(*x.shape[:-1], -1)


def rounded(x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """To INT8, ties to even, what is too large to the largest."""
    return (x.float() * inverse).round().clamp(-LARGEST - 1, LARGEST).to(torch.int8)


@torch.library.custom_op("diffopt::int8_linear", mutates_args=())
def int8_linear(
    codes: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """`codes` INT8 [rows, in] by `weight` INT8 [out, in], times `scale` FP32 [out], plus the bias: [rows, out] in `dtype`."""
    if codes.is_cuda:
        from diffopt.kernels.int8_triton import product

        return product(codes, weight, scale, bias, dtype)
    # Exact on every CPU: torch._int_mm's sums saturate on those without VNNI.
    out = (codes.double() @ weight.double().t()).float() * scale
    return (out if bias is None else out + bias.float()).to(dtype)


@int8_linear.register_fake
def _(
    codes: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    return codes.new_empty((len(codes), len(weight)), dtype=dtype)
