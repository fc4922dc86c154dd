"""A gradient for quantized attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import modelopt.torch.quantization.plugins.diffusion.diffusers as plugin
import torch


@contextmanager
def differentiable() -> Iterator[None]:
    """Within it, modelopt's quantized attention has a gradient; undone afterwards.

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
        yield
    finally:
        plugin.FP8SDPA = own
