"""Attention in FP8: q, k, v and what they give in E4M3, a static scale each, by cuDNN on a GPU.

On Hopper cuDNN gives FP8 alone, which is what a quantized linear layer after it wants.
"""

import logging
import math
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar

import torch

from diffopt.kernels.fp8 import E4M3, LARGEST, rounded
from diffopt.kernels.kernel import Buffer, Kernel

log = logging.getLogger("diffopt")

HEAD = 128
"""Most channels of a head that cuDNN takes on Hopper, in multiples of 16."""


class Fp8Attention(Kernel):
    """softmax(q k^T scale) v of q, k, v [batch, tokens, heads, channels], as diffusers lays them out.

    q, k and v are rounded as modelopt's fake quantization rounds them. So is the result, for the linear layer that follows:
    by its own scale, or, where it has none, by that of v, which no mean of v's exceeds.
    """

    kind: ClassVar[str] = "fp8_attention"
    adds: ClassVar[bool] = True
    cast: ClassVar[frozenset[str]] = frozenset()
    inverse: torch.Tensor
    """FP32 [3]: 448 / amax of q, k and v."""
    scales: torch.Tensor
    """FP32 [6]: of q, k and v, of the probabilities, the inverse of that, and the inverse of the result's."""
    output_scale: torch.Tensor
    """FP32 []: a number of the result is its code times this."""

    def __init__(self, amax: torch.Tensor, output_scale: torch.Tensor | None = None):
        """`amax` FP32 [3] of q, k and v."""
        super().__init__()
        amax = amax.detach().float()
        after = amax[2] / LARGEST if output_scale is None else output_scale.detach().float().reshape(()).to(amax.device)
        self.register_buffer("inverse", LARGEST / amax)
        # Probabilities are at most 1, which is code 448.
        fixed = torch.tensor([1 / LARGEST, LARGEST], device=amax.device)
        self.register_buffer("scales", torch.cat([amax / LARGEST, fixed, 1 / after.reshape(1)]))
        self.register_buffer("output_scale", after.clone())

    @classmethod
    def layout(cls, layer: Any) -> dict[str, Buffer]:
        lengths = {"inverse": (3,), "scales": (6,), "output_scale": ()}
        return {name: Buffer(shape, torch.float32) for name, shape in lengths.items()}

    def put(self, model: torch.nn.Module, name: str) -> None:
        """Into the attention layer that it is a child of."""
        from diffopt.kernels.attention_backend import attach

        attach(model.get_submodule(name.rpartition(".")[0]), self)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None) -> torch.Tensor:
        """Codes of the result, E4M3 [batch, tokens, heads, channels]."""
        return self.attend(rounded(q, self.inverse[0]), rounded(k, self.inverse[1]), rounded(v, self.inverse[2]), scale)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None) -> torch.Tensor:
        """The same of codes of q, k and v."""
        found: torch.Tensor = torch.ops.diffopt.fp8_attention(q, k, v, self.scales, scale or 1 / math.sqrt(q.shape[-1]))
        return found

    def follow(self, output_scale: torch.Tensor) -> None:
        """Give codes by this scale, FP32 [], from now on."""
        self.output_scale = output_scale.clone()
        self.scales[5] = 1 / output_scale

    def numbers(self, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What the codes stand for. A linear layer after it that has this scale finds the same codes again."""
        return (codes.float() * self.output_scale).to(dtype)


@torch.library.custom_op("diffopt::fp8_attention", mutates_args=())
def fp8_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scales: torch.Tensor, scale: float) -> torch.Tensor:
    """Codes [batch, tokens, heads, channels] of q, k and v; `scales` as Fp8Attention's: codes of the result."""
    if q.is_cuda and _cudnn():
        from diffopt.kernels.cudnn_attention import attention

        found = attention(q, k, v, scales, scale)
        if found is not None:
            return found
    return by_torch(q, k, v, scales, scale)


@fp8_attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scales: torch.Tensor, scale: float) -> torch.Tensor:
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


@cache
def _cudnn() -> bool:
    """Whether cuDNN's front end is here; that it is not is said once."""
    found = find_spec("cudnn") is not None
    if not found:
        log.warning("native: no nvidia-cudnn-frontend: FP8 attention is computed in 16 bits; pip install 'diffopt[native]'")
    return found


def by_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scales: torch.Tensor, scale: float) -> torch.Tensor:
    """The same in torch's own attention: where cuDNN has none for these shapes, and on a CPU.

    On a GPU in BF16, which holds every code.
    """
    dtype = torch.bfloat16 if q.is_cuda else torch.float32
    q, k, v = ((x.float() * s).to(dtype).transpose(1, 2) for x, s in zip((q, k, v), scales[:3], strict=True))
    found = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
    return (found.float() * scales[5]).clamp(-LARGEST, LARGEST).to(E4M3)
