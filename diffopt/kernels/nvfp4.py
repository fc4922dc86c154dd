"""A linear layer in NVFP4: E2M1 weights and inputs, an E4M3 scale for a block of 16 and an FP32 one for a tensor.

The product is torch's, on GPUs of compute capability 10.0 on. On a CPU it is that of the numbers that the codes stand for.
"""

from typing import Any, ClassVar

import torch

from diffopt.kernels.block_scales import length, straight, tiled
from diffopt.kernels.kernel import Buffer, Kernel
from diffopt.quantization.block_codes import Coded, nvfp4, tensor_scale
from diffopt.quantization.block_fake_quant import BLOCK
from diffopt.quantization.numbers import nvfp4 as numbers
from diffopt.quantization.numbers import packed, unpacked

E4M3 = torch.float8_e4m3fn
OUTPUTS = 16
INPUTS = 32
"""What the product wants the lengths of a weight to be multiples of: 16 bytes."""


class Nvfp4Linear(Kernel):
    """y = x W^T + b, x rounded by block scales found as it passes: the codes that modelopt's fake quantization simulates.

    With SVDQuant y = (x s) W^T + (x s) A^T B^T + b, the part beside W in the model's precision.
    """

    kind: ClassVar[str] = "nvfp4"
    cast: ClassVar[frozenset[str]] = frozenset({"bias", "smoothing", "low_rank_a", "low_rank_b"})
    weight: torch.Tensor
    """Codes UINT8 [out, in / 2], the first of two in the lower bits."""
    block_scales: torch.Tensor
    """Of the weight, E4M3, in tiles (block_scales.py)."""
    weight_scale: torch.Tensor
    input_scale: torch.Tensor
    """FP32 []: a number is its code times its block's scale times this."""
    smoothing: torch.Tensor | None
    """[in]: what the input is multiplied by first."""
    low_rank_a: torch.Tensor | None
    """[rank, in]"""
    low_rank_b: torch.Tensor | None
    """[out, rank]"""
    bias: torch.Tensor | None

    def __init__(
        self,
        weight: Coded,
        bias: torch.Tensor | None,
        input_amax: torch.Tensor,
        smoothing: torch.Tensor | None = None,
        low_rank: tuple[torch.Tensor, torch.Tensor] | None = None,
    ):
        """`weight` is the layer's own [out, in], without what is in `low_rank`, A and B; `input_amax` is the tensor's.

        Raises ValueError for lengths that the product does not take.
        """
        super().__init__()
        codes, small, scale = weight
        out, depth = codes.shape
        if depth % INPUTS or out % OUTPUTS:
            raise ValueError(f"its {depth} inputs and {out} outputs are not multiples of {INPUTS} and {OUTPUTS}")
        a, b = (None, None) if low_rank is None else (x.detach().contiguous() for x in low_rank)
        self.register_buffer("weight", packed(codes))
        self.register_buffer("block_scales", tiled(small))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("input_scale", tensor_scale(input_amax).to(codes.device))
        self.register_buffer("smoothing", None if smoothing is None else smoothing.detach().flatten())
        self.register_buffer("low_rank_a", a)
        self.register_buffer("low_rank_b", b)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @classmethod
    def layout(cls, layer: Any) -> dict[str, Buffer]:
        out, depth = layer.out_features, layer.in_features
        return {
            "weight": Buffer((out, depth // 2), torch.uint8),
            "block_scales": Buffer((length(out, depth // BLOCK),), E4M3),
            **dict.fromkeys(("weight_scale", "input_scale"), Buffer((), torch.float32)),
            "smoothing": Buffer((depth,), None, needed=False),
            "low_rank_a": Buffer((None, depth), None, needed=False),
            "low_rank_b": Buffer((out, None), None, needed=False),
            "bias": Buffer((out,), None, needed=layer.bias is not None),
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        rows = rows if self.smoothing is None else rows * self.smoothing
        found = self._product(*nvfp4(rows, self.input_scale), x.dtype) * (self.input_scale * self.weight_scale)
        out = (found if self.bias is None else found + self.bias.float()).to(x.dtype)
        if self.low_rank_a is not None:
            assert self.low_rank_b is not None
            out = out + torch.nn.functional.linear(torch.nn.functional.linear(rows, self.low_rank_a), self.low_rank_b)
        return out.reshape(*x.shape[:-1], -1)

    def _product(self, codes: torch.Tensor, small: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """FP32 [rows, out], without the tensors' scales."""
        if not codes.is_cuda:
            blocks = straight(self.block_scales, len(self.weight), small.shape[1])
            return (numbers(codes, small) @ numbers(unpacked(self.weight), blocks).t()).float()
        pair = torch.float4_e2m1fn_x2
        wide = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32  # FP16 ends at 65,504, before the scales are in it
        found = torch._scaled_mm(
            packed(codes).view(pair),
            self.weight.view(pair).t(),
            scale_a=tiled(small),
            scale_b=self.block_scales,
            out_dtype=wide,
        )
        return found.float()
