"""A linear layer in FP8: E4M3 weights and inputs, a scale each, by torch's scaled products."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from diffopt.kernels.kernel import Buffer, Kernel

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""Of E4M3."""
MULTIPLE = 16
"""What the scaled product wants both lengths of a weight to be a multiple of."""


class Fp8Linear(Kernel):
    """y = x W^T + b, x rounded by a static scale. It computes what modelopt's fake quantization simulates: the same codes, the
    products added up in FP32."""

    kind: ClassVar[str] = "fp8"
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

    @classmethod
    def layout(cls, layer: Any) -> dict[str, Buffer]:
        return {
            "weight": Buffer((layer.out_features, layer.in_features), E4M3),
            **dict.fromkeys(("weight_scale", "input_scale", "inverse"), Buffer((), torch.float32)),
            "bias": Buffer((layer.out_features,), None, needed=layer.bias is not None),
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(self.enter(x), x.dtype)

    def enter(self, x: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Codes of x, which may be the part of the input that begins at `start`."""
        return rounded(x, self.inverse)

    def product(self, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """[..., in] E4M3 to [..., out] in `dtype`."""
        rows = codes.reshape(-1, codes.shape[-1])
        if not codes.is_cuda:  # the product is there on the newest CPUs alone
            out = (rows.double() @ self.weight.double().t()).float() * (self.input_scale * self.weight_scale)
            out = out if self.bias is None else out + self.bias.float()
            return out.to(dtype).reshape(*codes.shape[:-1], -1)
        within = dtype != torch.float32  # a product in FP32 takes no bias
        out = torch._scaled_mm(
            rows,
            self.weight.t(),
            scale_a=self.input_scale,
            scale_b=self.weight_scale,
            bias=self.bias if within else None,
            out_dtype=dtype,
            use_fast_accum=True,
        )
        out = out if within or self.bias is None else out + self.bias
        return out.reshape(*codes.shape[:-1], -1)


class JoinedFp8Linear(Fp8Linear):
    """Several layers of one input in one product: the same codes, each with its weight's own scale.

    The product takes the largest of the scales. What is left of each, and the bias, is applied to its result, where inductor
    makes it a part of what reads that.
    """

    columns: torch.Tensor
    """FP32 [out]: each output's scale over the largest."""
    added: torch.Tensor
    """[out]: the biases, zeros where a layer has none."""

    def __init__(self, layers: Sequence[Fp8Linear]):
        """Raises ValueError for layers whose inputs have not one scale."""
        torch.nn.Module.__init__(self)
        if len({float(layer.input_scale) for layer in layers}) > 1:
            raise ValueError("their inputs are rounded by different scales")
        first, largest = layers[0], torch.stack([layer.weight_scale for layer in layers]).max()
        biases = [
            torch.zeros_like(layer.weight[:, 0], dtype=torch.float32) if layer.bias is None else layer.bias for layer in layers
        ]
        self.register_buffer("weight", torch.cat([layer.weight.view(torch.uint8) for layer in layers]).view(E4M3))
        self.register_buffer("weight_scale", largest)
        self.register_buffer("columns", torch.cat([(x.weight_scale / largest).expand(len(x.weight)) for x in layers]))
        self.register_buffer("added", torch.cat(biases))
        self.register_buffer("input_scale", first.input_scale)
        self.register_buffer("inverse", first.inverse)
        self.register_buffer("bias", None)

    def sums(self, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What the product gives, still to be multiplied by `columns` and to have `added`."""
        return Fp8Linear.product(self, codes, dtype)

    def product(self, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return (self.sums(codes, dtype).float() * self.columns + self.added.float()).to(dtype)


def rounded(x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """To E4M3, what is too large to the largest. The scale is static, so that inductor fuses this into what makes x."""
    return (x.float() * inverse).clamp(-LARGEST, LARGEST).to(E4M3)
