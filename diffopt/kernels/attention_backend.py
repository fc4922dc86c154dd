"""FP8 attention in the place of diffusers' own, in every family whose processors ask diffusers for their attention."""

import copy
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from diffopt.kernels.attention import HEAD, Fp8Attention

CHILD = "fp8_attention"
"""The name by which an attention layer has it."""
MULTIPLE = 16


def attach(attention: Any, products: Fp8Attention) -> None:
    """Make `attention`, a layer of diffusers', compute its products by these.

    A processor hands its `_attention_backend` to diffusers' `dispatch_attention_fn`, beside q, k and v. Here that is the layer
    with the scales, which the function is taught to know. Raises ValueError where the processor calls torch itself.
    """
    processor = attention.processor
    module: Any = sys.modules[type(processor).__module__]
    if not (hasattr(processor, "_attention_backend") and hasattr(module, "dispatch_attention_fn")):
        raise ValueError(f"{type(processor).__name__} does not ask diffusers for its attention")
    head = int(getattr(attention, "head_dim", None) or attention.inner_dim // attention.heads)
    if head % MULTIPLE or head > HEAD:
        raise ValueError(f"its heads have {head} channels, not a multiple of {MULTIPLE} up to {HEAD}")
    if not hasattr(module.dispatch_attention_fn, "__wrapped__"):
        module.dispatch_attention_fn = _knowing(module.dispatch_attention_fn)
    own = copy.copy(processor)
    own._attention_backend = products
    attention.processor = own
    setattr(attention, CHILD, products)


def _knowing(dispatch: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(dispatch)
    def dispatched(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        *,
        backend: Any = None,
        **how: Any,
    ) -> Any:
        if not isinstance(backend, Fp8Attention):
            return dispatch(query, key, value, attn_mask, backend=backend, **how)
        if attn_mask is not None or how.get("is_causal"):  # cuDNN's FP8 attention takes no mask
            return dispatch(query, key, value, attn_mask, backend=None, **how)
        return backend.numbers(backend(query, key, value, how.get("scale")), query.dtype)

    return dispatched
