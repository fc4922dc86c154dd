"""What FLUX's blocks do between their products: on a GPU one kernel each, on a CPU torch's own functions.

Inductor makes several passes over memory of each. It takes these kernels into the code that it makes.
"""

import math

import torch
from diffusers.models.embeddings import apply_rotary_emb

from diffopt.kernels import fp8, int8


def heads(
    products: list[torch.Tensor],
    columns: list[torch.Tensor],
    added: list[torch.Tensor],
    norms: list[torch.Tensor],
    cos: torch.Tensor,
    sin: torch.Tensor,
    inverse: torch.Tensor | None,
    eps: float,
) -> list[torch.Tensor]:
    """q, k and v [batch, tokens, heads, channels] as the attention takes them: those of the text first, where it is apart.

    `products` are q, k and v [batch, tokens, heads x channels] of each part in turn; each is first multiplied by its `columns`
    and has its `added`, both [heads x channels], where there are such. `norms` are RMSNorm's weights [channels] of q and k of
    each part, `cos` and `sin` FP32 [tokens, channels] of all tokens. With `inverse`, FP32 [3], the result is E4M3 codes.
    """
    if products[0].is_cuda:
        from diffopt.kernels import flux_triton

        return flux_triton.heads(products, columns, added, norms, cos, sin, inverse, eps)
    parts: list[list[torch.Tensor]] = [[], [], []]
    for i, product in enumerate(products):
        x = _scaled(product, columns[i], added[i]) if columns else product
        x = x.unflatten(-1, (-1, cos.shape[1]))
        part, kind = divmod(i, 3)
        parts[kind].append(x if kind == 2 else torch.nn.functional.rms_norm(x, x.shape[-1:], norms[2 * part + kind], eps))
    q, k, v = (torch.cat(x, 1) for x in parts)
    found = [apply_rotary_emb(q, (cos, sin), sequence_dim=1), apply_rotary_emb(k, (cos, sin), sequence_dim=1), v]
    return found if inverse is None else [fp8.rounded(x, s) for x, s in zip(found, inverse, strict=True)]


def gelu(
    product: torch.Tensor,
    columns: torch.Tensor | None,
    added: torch.Tensor | None,
    smoothing: torch.Tensor | None,
    inverse: torch.Tensor,
    before: torch.Tensor | None,
    integers: bool,
) -> torch.Tensor:
    """Codes for the layer after GELU, whose input begins with `before` where that is given.

    `product` is [batch, tokens, n], first multiplied by `columns` and with `added`, both [n], where there are such; `before`
    [batch, tokens, m] is numbers, or codes of that layer's already; `smoothing` [m + n] and `inverse` FP32 [] are that
    layer's. INT8 codes if `integers`, else E4M3: [batch, tokens, m + n].
    """
    if product.is_cuda:
        from diffopt.kernels import flux_triton

        return flux_triton.gelu(product, columns, added, smoothing, inverse, before, integers)
    rounded = int8.rounded if integers else fp8.rounded
    wide = _gelu(product if columns is None or added is None else _scaled(product, columns, added))
    start = 0 if before is None else before.shape[-1]
    right = rounded(wide if smoothing is None else wide * smoothing[start:], inverse)
    if before is None:
        return right
    left = before if smoothing is None else before * smoothing[:start]
    left = left if left.dtype == right.dtype else rounded(left, inverse)
    return torch.cat([left.view(torch.uint8), right.view(torch.uint8)], -1).view(right.dtype)


def _scaled(product: torch.Tensor, columns: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    return (product.float() * columns + added.float()).to(product.dtype)


def _gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU's approximation by tanh: (1 + tanh z) / 2 is sigmoid(2 z)."""
    wide = x.float()
    z = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    return (wide * torch.sigmoid(2 * z)).to(x.dtype)
