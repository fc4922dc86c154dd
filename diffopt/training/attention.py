"""A gradient for quantized attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import modelopt.torch.quantization.plugins.diffusion.diffusers as plugin
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Not cuDNN's: its backward reads where it may not at FLUX.1's shapes (24 heads of 128, 4608 tokens; torch 2.11, H100)."""


@contextmanager
def differentiable() -> Iterator[None]:
    """Within it, attention has a gradient, modelopt's quantized one too; undone afterwards.

    modelopt sends every fused attention of a converted module through FP8SDPA, a function with a symbol for ONNX and no
    backward, whatever the format. Outside of an export it is plain attention of operands that were quantized before, and
    so it is here.
    """
    own = plugin.FP8SDPA

    class Attention:
        @staticmethod
        def apply(
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            mask: torch.Tensor | None = None,
            dropout: float = 0.0,
            causal: bool = False,
            scale: float | None = None,
            *of_symbol: Any,
        ) -> torch.Tensor:
            found: torch.Tensor
            if torch.onnx.is_in_onnx_export():
                found = own.apply(query, key, value, mask, dropout, causal, scale, *of_symbol)
            else:
                found = plugin.original_scaled_dot_product_attention(
                    query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale
                )
            return found

    plugin.FP8SDPA = Attention
    try:
        with sdpa_kernel(BACKENDS):
            yield
    finally:
        plugin.FP8SDPA = own
