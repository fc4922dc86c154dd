"""A linear layer in FP8: E4M3 weights and inputs, a scale each, by torch's scaled products."""

import torch

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""Of E4M3."""
MULTIPLE = 16
"""What the scaled product wants both lengths of a weight to be a multiple of."""


class Fp8Linear(torch.nn.Module):
    """y = x W^T + b, x rounded by a static scale. It computes what modelopt's fake quantization simulates: the same codes, the
    products added up in FP32."""

    weight: torch.Tensor
    """Codes [out, in]."""
    input_scale: torch.Tensor
    weight_scale: torch.Tensor
    """FP32 []: a number is its code times the scale."""
    inverse: torch.Tensor
    """FP32 []: 1 / input_scale, as modelopt rounds: by 448 / amax."""
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, weight_amax: torch.Tensor, input_amax: torch.Tensor):
        """`weight` is the layer's own, [out, in] in FP32, BF16 or FP16; amax are of one number each.

        Raises ValueError for lengths that the product does not take.
        """
        super().__init__()
        if any(length % MULTIPLE for length in weight.shape):
            raise ValueError(f"its {weight.shape[1]} inputs and {weight.shape[0]} outputs are not multiples of {MULTIPLE}")
        weight_amax, input_amax = (x.detach().float().reshape(()).to(weight.device) for x in (weight_amax, input_amax))
        self.register_buffer("weight", rounded(weight.detach(), LARGEST / weight_amax))
        self.register_buffer("weight_scale", weight_amax / LARGEST)
        self.register_buffer("input_scale", input_amax / LARGEST)
        self.register_buffer("inverse", LARGEST / input_amax)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = rounded(x.reshape(-1, x.shape[-1]), self.inverse)
        if not x.is_cuda:  # the product is there on the newest CPUs alone
            out = (codes.double() @ self.weight.double().t()).float() * (self.input_scale * self.weight_scale)
            out = out if self.bias is None else out + self.bias.float()
            return out.to(x.dtype).reshape(*x.shape[:-1], -1)
        within = x.dtype != torch.float32  # a product in FP32 takes no bias
        out = torch._scaled_mm(
            codes,
            self.weight.t(),
            scale_a=self.input_scale,
            scale_b=self.weight_scale,
            bias=self.bias if within else None,
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
        out = out if within or self.bias is None else out + self.bias
        return out.reshape(*x.shape[:-1], -1)


def rounded(x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """To E4M3, what is too large to the largest. The scale is static, so that inductor fuses this into what makes x."""
    return (x.float() * inverse).clamp(-LARGEST, LARGEST).to(E4M3)
