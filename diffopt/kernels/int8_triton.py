"""The INT8 product on a GPU, with its scales and bias in the same kernel: cuBLAS gives the sums alone, in 32 bits, and is no
faster on Hopper than a product in 16 bits."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl

TILES = [
    triton.Config({"ROWS": rows, "COLUMNS": columns, "DEPTH": 128, "GROUP": 8}, num_warps=warps, num_stages=stages)
    for rows, columns, warps, stages in (
        (256, 128, 8, 3),
        (128, 256, 8, 3),
        (128, 256, 8, 4),
        (128, 128, 8, 4),
        (64, 256, 4, 4),
    )
]


@triton.autotune(TILES, key=["many", "out", "depth"], cache_results=True)
@triton.jit
def _kernel(
    codes,
    weight,
    result,
    scale,
    bias,
    many,
    out,
    depth,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    # Tiles are taken in groups of GROUP rows of them, so that what is read of the weight stays in the cache for a while.
    tile = tl.program_id(0)
    down, across = tl.cdiv(many, ROWS), tl.cdiv(out, COLUMNS)
    first = tile // (GROUP * across) * GROUP
    height = min(down - first, GROUP)
    row = first + (tile % (GROUP * across)) % height
    column = (tile % (GROUP * across)) // height
    rows = row * ROWS + tl.arange(0, ROWS)
    columns = column * COLUMNS + tl.arange(0, COLUMNS)
    within = tl.arange(0, DEPTH)
    a = codes + (rows % many)[:, None].to(tl.int64) * depth + within[None, :]
    b = weight + (columns % out)[None, :].to(tl.int64) * depth + within[:, None]
    sums = tl.zeros((ROWS, COLUMNS), tl.int32)
    for start in range(0, depth, DEPTH):
        left = within < depth - start
        x = tl.load(a, mask=left[None, :], other=0)
        w = tl.load(b, mask=left[:, None], other=0)
        sums = tl.dot(x, w, sums, out_dtype=tl.int32)
        a += DEPTH
        b += DEPTH
    found = sums.to(tl.float32) * tl.load(scale + columns, mask=columns < out, other=0)[None, :]
    if BIAS:
        found += tl.load(bias + columns, mask=columns < out, other=0).to(tl.float32)[None, :]
    there = (rows < many)[:, None] & (columns < out)[None, :]
    tl.store(result + rows[:, None].to(tl.int64) * out + columns[None, :], found.to(result.dtype.element_ty), mask=there)


def product(
    codes: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """As `diffopt::int8_linear`, whose arguments must lie row by row in memory."""
    codes, (many, depth), out = codes.contiguous(), codes.shape, len(weight)
    result = torch.empty(many, out, device=codes.device, dtype=dtype)

    def grid(tiles: Any) -> tuple[int]:
        return (triton.cdiv(many, tiles["ROWS"]) * triton.cdiv(out, tiles["COLUMNS"]),)

    _kernel[grid](codes, weight, result, scale, scale if bias is None else bias, many, out, depth, bias is not None)
    return result
