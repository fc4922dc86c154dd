"""A linear layer in MXFP8: E4M3 weights and inputs, a power of two for a block of 32; nothing is calibrated.

The product is torch's, on GPUs of compute capability 10.0 on. On a CPU it is that of the numbers that the codes stand for.
"""

from typing import Any, ClassVar

import torch

from diffopt.kernels.block_scales import length, straight, tiled
from diffopt.kernels.kernel import Buffer, Kernel
from diffopt.quantization.block_codes import mxfp8
from diffopt.quantization.block_fake_quant import MX_BLOCK
from diffopt.quantization.numbers import mxfp8 as numbers

OUTPUTS = 16
"""What the product wants the outputs to be a multiple of."""


class Mxfp8Linear(Kernel):
    """y = x W^T + b, x rounded by block scales found as it passes: the codes that modelopt's fake quantization simulates."""

    kind: ClassVar[str] = "mxfp8"
    weight: torch.Tensor
    """Codes E4M3 [out, in]."""
    block_scales: torch.Tensor
    """Of the weight, bits of E8M0 as UINT8, in tiles (block_scales.py)."""
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        """`weight` is the layer's own [out, in]. Raises ValueError for lengths that the product does not take."""
        super().__init__()
        out, depth = weight.shape
        if depth % MX_BLOCK or out % OUTPUTS:
            raise ValueError(f"its {depth} inputs and {out} outputs are not multiples of {MX_BLOCK} and {OUTPUTS}")
        codes, powers = mxfp8(weight.detach())
        self.register_buffer("weight", codes)
        self.register_buffer("block_scales", tiled(powers))
        self.register_buffer("bias", None if bias is None else bias.detach())

    @classmethod
    def layout(cls, layer: Any) -> dict[str, Buffer]:
        out, depth = layer.out_features, layer.in_features
        return {
            "weight": Buffer((out, depth), torch.float8_e4m3fn),
            "block_scales": Buffer((length(out, depth // MX_BLOCK),), torch.uint8),
            "bias": Buffer((out,), None, needed=layer.bias is not None),
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes, powers = mxfp8(x.reshape(-1, x.shape[-1]))
        out = self._product(codes, powers, x.dtype)
        out = (out if self.bias is None else out + self.bias).to(x.dtype)
        return out.reshape(*x.shape[:-1], -1)

    def _product(self, codes: torch.Tensor, powers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """[rows, out] in FP32, or in BF16 where that is asked for."""
        if not codes.is_cuda:
            blocks = straight(self.block_scales, len(self.weight), powers.shape[1])
            return (numbers(codes, powers) @ numbers(self.weight, blocks).t()).float()
        return torch._scaled_mm(
            codes,
            self.weight.t(),
            scale_a=tiled(powers).view(torch.float8_e8m0fnu),
            scale_b=self.block_scales.view(torch.float8_e8m0fnu),
            out_dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32,
        )
