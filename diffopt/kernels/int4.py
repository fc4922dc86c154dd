"""A linear layer with INT4 weights: two codes a byte, a scale for a block of inputs; AWQ's scales before it.

It saves memory, not time. The weight is made again in the input's precision each time, a layer at a time, and multiplied by the
library that multiplies a plain layer. torch's own INT4 product (`_weight_int4pack_mm`, torchao's too) takes BF16 alone
and rounds the scales to it. It is made for the few rows of a language model's next token; at a picture's thousands it was
not measured.
"""

from typing import Any, ClassVar

import torch

from diffopt.kernels.kernel import Buffer, Kernel

LARGEST, SMALLEST = 7.0, -8
TINY = 2.0**-24
"""modelopt makes zeros of a block whose maximum is no more."""


class Int4Linear(Kernel):
    """y = (x s) W^T + b, W bit for bit what modelopt's fake quantization makes of the weight."""

    kind: ClassVar[str] = "int4"
    cast: ClassVar[frozenset[str]] = frozenset({"bias", "smoothing"})
    weight: torch.Tensor
    """Codes + 8, UINT8 [out, in / 2], the first of two in the lower bits."""
    amax: torch.Tensor
    """[out, blocks]: of each block, which is code 7. In the weight's precision where that holds it, else FP32."""
    smoothing: torch.Tensor | None
    """[in]: what the input is multiplied by first."""
    bias: torch.Tensor | None

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, amax: torch.Tensor, smoothing: torch.Tensor | None = None
    ):
        """`weight` is the layer's own [out, in], scaled already where there is `smoothing`; `amax` has one number for each
        block of equally many inputs, row by row.

        Raises ValueError for an odd number of inputs.
        """
        super().__init__()
        out, depth = weight.shape
        if depth % 2:
            raise ValueError(f"its {depth} inputs are an odd number, and two codes are stored in a byte")
        amax = amax.detach().to(weight.device).reshape(out, -1)
        own = amax.float()[..., None]
        blocks = weight.detach().float().unflatten(1, (own.shape[1], -1))
        codes = torch.where(own <= TINY, 0, (blocks * inverse(own)).round().clamp(SMALLEST, LARGEST))
        codes = (codes - SMALLEST).to(torch.uint8).flatten(1)
        self.register_buffer("weight", codes[:, ::2] | codes[:, 1::2] << 4)
        narrow = amax.to(weight.dtype)
        self.register_buffer("amax", narrow if torch.equal(narrow.float(), amax.float()) else amax.float())
        self.register_buffer("smoothing", None if smoothing is None else smoothing.detach().flatten())
        self.register_buffer("bias", None if bias is None else bias.detach())

    @classmethod
    def layout(cls, layer: Any) -> dict[str, Buffer]:
        out, depth = layer.out_features, layer.in_features
        return {
            "weight": Buffer((out, depth // 2), torch.uint8),
            "amax": Buffer((out, None), None),
            "smoothing": Buffer((depth,), None, needed=False),
            "bias": Buffer((out,), None, needed=layer.bias is not None),
        }

    def numbers(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [out, in]."""
        codes = torch.stack([self.weight & 15, self.weight >> 4], -1).flatten(1)
        blocks: torch.Tensor = (codes.float() + SMALLEST).unflatten(1, (self.amax.shape[1], -1))
        return (blocks / inverse(self.amax.float())[..., None]).flatten(1).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.smoothing is None else x * self.smoothing
        return torch.nn.functional.linear(x, self.numbers(x.dtype), self.bias)


def inverse(amax: torch.Tensor) -> torch.Tensor:
    """Codes of a number. A tensor divided by one, as modelopt does: torch makes another last bit of a number by a tensor."""
    return torch.full_like(amax, LARGEST) / amax
