"""flux_ops' functions as Triton kernels: each reads what a product gave once and writes what the next one takes."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from diffopt.kernels.fp8 import E4M3

HEADS, BLOCK = 2, 512
"""Heads of a token, or columns, that a program takes; the fastest of those tried on an H200."""
DEEP = 8
"""Rows that a program takes of GELU's."""


@triton.jit
def _entered(x, columns, added, at, there, SCALED: tl.constexpr, BF16: tl.constexpr):
    """FP32, rounded as a layer's own result would be."""
    x = x.to(tl.float32)
    if SCALED:
        x = x * tl.load(columns + at, mask=there, other=0) + tl.load(added + at, mask=there, other=0).to(tl.float32)
        x = x.to(BF16).to(tl.float32)
    return x


@triton.jit
def _turned(x, cos, sin, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    """Each pair of channels by its angle."""
    even, odd = tl.split(tl.reshape(x, (ROWS, CHANNELS // 2, 2)))
    cos_even, cos_odd = tl.split(tl.reshape(cos, (ROWS, CHANNELS // 2, 2)))
    sin_even, sin_odd = tl.split(tl.reshape(sin, (ROWS, CHANNELS // 2, 2)))
    return tl.reshape(tl.join(even * cos_even - odd * sin_even, odd * cos_odd + even * sin_odd), (ROWS, CHANNELS))


@triton.jit
def _normed(x, weight, channel, eps, CHANNELS: tl.constexpr, DTYPE: tl.constexpr):
    scale = tl.rsqrt(tl.sum(x * x, 1) / CHANNELS + eps)
    return (x * scale[:, None] * tl.load(weight + channel).to(tl.float32)[None, :]).to(DTYPE).to(tl.float32)


@triton.jit
def _heads(
    q, k, v, q_columns, k_columns, v_columns, q_added, k_added, v_added, q_norm, k_norm, cos, sin, inverse,
    q_out, k_out, v_out, many, tokens, first, total, q_stride, k_stride, v_stride, heads, eps,
    SCALED: tl.constexpr, CODES: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = q.dtype.element_ty
    index = tl.arange(0, ROWS * HEADS)
    row, head = tl.program_id(0) * ROWS + index // HEADS, tl.program_id(1) * HEADS + index % HEADS
    channel = tl.arange(0, CHANNELS)
    there = ((row < many) & (head < heads))[:, None] & (channel >= 0)[None, :]
    place = first + row % tokens
    at = head[:, None] * CHANNELS + channel[None, :]
    angle = place[:, None] * CHANNELS + channel[None, :]
    turn, lift = tl.load(cos + angle, mask=there, other=0), tl.load(sin + angle, mask=there, other=0)
    out = (row // tokens * total + place).to(tl.int64)[:, None] * (heads * CHANNELS) + at
    row = row.to(tl.int64)[:, None]
    x = _entered(tl.load(q + row * q_stride + at, mask=there, other=0), q_columns, q_added, at, there, SCALED, DTYPE)
    y = _entered(tl.load(k + row * k_stride + at, mask=there, other=0), k_columns, k_added, at, there, SCALED, DTYPE)
    z = _entered(tl.load(v + row * v_stride + at, mask=there, other=0), v_columns, v_added, at, there, SCALED, DTYPE)
    x = _turned(_normed(x, q_norm, channel, eps, CHANNELS, DTYPE), turn, lift, CHANNELS, ROWS * HEADS).to(DTYPE)
    y = _turned(_normed(y, k_norm, channel, eps, CHANNELS, DTYPE), turn, lift, CHANNELS, ROWS * HEADS).to(DTYPE)
    z = z.to(DTYPE)
    if CODES:
        x = tl.clamp(x.to(tl.float32) * tl.load(inverse), -448.0, 448.0)
        y = tl.clamp(y.to(tl.float32) * tl.load(inverse + 1), -448.0, 448.0)
        z = tl.clamp(z.to(tl.float32) * tl.load(inverse + 2), -448.0, 448.0)
    tl.store(q_out + out, x.to(q_out.dtype.element_ty), mask=there)
    tl.store(k_out + out, y.to(q_out.dtype.element_ty), mask=there)
    tl.store(v_out + out, z.to(q_out.dtype.element_ty), mask=there)


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
    """As flux_ops', of a power of two channels; each part by a launch of its own into the same result."""
    (total, channels), batch, width = cos.shape, len(products[0]), products[0].shape[-1]
    dtype = products[0].dtype if inverse is None else E4M3
    found = [products[0].new_empty((batch, total, width // channels, channels), dtype=dtype) for _ in range(3)]
    first = 0
    for i in range(0, len(products), 3):
        part = [_rows(x) for x in products[i : i + 3]]
        tokens, many = products[i].shape[1], len(part[0])
        factors = [*columns[i : i + 3], *added[i : i + 3]] if columns else [cos] * 6
        grid = many, triton.cdiv(width // channels, HEADS)
        _heads[grid](
            *part, *factors, *norms[i // 3 * 2 : i // 3 * 2 + 2], cos, sin, cos if inverse is None else inverse, *found,
            many, tokens, first, total, *(x.stride(0) for x in part), width // channels, eps,
            len(columns) > 0, inverse is not None, channels, 1, HEADS, num_warps=1,
        )  # fmt: skip
        first += tokens
    return found


@triton.jit
def _code(x, smoothing, column, within, inverse, out, SMOOTH: tl.constexpr, INTEGERS: tl.constexpr):
    if SMOOTH:
        x = (x.to(tl.float32) * tl.load(smoothing + column, mask=within, other=0).to(tl.float32)).to(x.dtype)
    x = x.to(tl.float32) * tl.load(inverse)
    x = libdevice.rint(tl.clamp(x, -128.0, 127.0)) if INTEGERS else tl.clamp(x, -448.0, 448.0)
    return x.to(out.dtype.element_ty)


@triton.jit
def _gelu(
    product, columns, added, smoothing, inverse, before, out, many, stride, before_stride, width, wide,
    SCALED: tl.constexpr, SMOOTH: tl.constexpr, CODES: tl.constexpr, INTEGERS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    there = (row < many) & (column < width + wide)
    target = out + row * (width + wide) + column
    if tl.program_id(0) * BLOCK < width:  # width is a multiple of BLOCK
        left = tl.load(before + row * before_stride + column, mask=there)
        if CODES:
            tl.store(target, left, mask=there)
        else:
            tl.store(target, _code(left, smoothing, column, column < width + wide, inverse, out, SMOOTH, INTEGERS), mask=there)
    else:
        at = column - width
        x = tl.load(product + row * stride + at, mask=there, other=0)
        x = _entered(x, columns, added, at, column < width + wide, SCALED, product.dtype.element_ty)
        x = (x / (1 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))).to(product.dtype.element_ty)
        tl.store(target, _code(x, smoothing, column, column < width + wide, inverse, out, SMOOTH, INTEGERS), mask=there)


def gelu(
    product: torch.Tensor,
    columns: torch.Tensor | None,
    added: torch.Tensor | None,
    smoothing: torch.Tensor | None,
    inverse: torch.Tensor,
    before: torch.Tensor | None,
    integers: bool,
) -> torch.Tensor:
    """As flux_ops'."""
    rows, left = _rows(product), None if before is None else _rows(before)
    wide, width = rows.shape[1], 0 if left is None else left.shape[1]
    out = product.new_empty((*product.shape[:-1], width + wide), dtype=torch.int8 if integers else E4M3)
    block = BLOCK
    while width % block:
        block //= 2
    grid = triton.cdiv(width + wide, block), triton.cdiv(len(rows), DEEP)
    _gelu[grid](
        rows, inverse if columns is None else columns, inverse if added is None else added,
        inverse if smoothing is None else smoothing, inverse, rows if left is None else left, out,
        len(rows), rows.stride(0), 0 if left is None else left.stride(0), width, wide,
        columns is not None, smoothing is not None, left is not None and left.dtype == out.dtype, integers, DEEP, block,
        num_warps=4,
    )  # fmt: skip
    return out


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[batch, tokens, n] as [batch x tokens, n], the last axis dense."""
    return x.flatten(0, 1)
