"""Where Nunchaku's kernels look for a code, a scale and a low-rank factor, from the fragments of PTX's `mma.m16n8k64` of 4 bits
and `mma.m16n8k16` of 16."""

import torch

VECTORS = ("bias", "wcscales", "smooth_factor")


def code_at(packed: torch.Tensor, n: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Lane 4 (n % 8) + (k % 32) / 8 has eight codes a register; four registers: two along K, for two halves of 16 outputs."""
    tiles = packed.shape[1] * 2 // 64
    tile, pack, half = (n // 128) * tiles + k // 64, n % 128 // 16, n % 16 // 8
    lane = 4 * (n % 8) + k % 32 // 8
    word = ((tile * 8 + pack) * 32 + lane) * 4 + 2 * half + k % 64 // 32
    byte = packed.view(torch.uint8).flatten()[4 * word + k % 8 // 2]
    return torch.where(k % 2 == 1, byte >> 4, byte & 15)


def block_scale_at(packed: torch.Tensor, n: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Lane 4 (n % 8) + (n % 32) / 8 has four outputs, 32 apart, of four groups each."""
    tile = (n // 128) * (len(packed) // 4) + group // 4
    lane = 4 * (n % 8) + n % 32 // 8
    return packed.view(torch.uint8).flatten()[((tile * 32 + lane) * 4 + n % 128 // 32) * 4 + group % 4].view(packed.dtype)


def vector_at(packed: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """Lane 4 (n % 128 / 16) + n % 8 / 2 has outputs n, n + 1, n + 8, n + 9."""
    lane = 4 * (n % 128 // 16) + n % 8 // 2
    return packed[n // 128 * 128 + lane * 4 + 2 * (n % 16 // 8) + n % 2]


def low_rank_at(packed: torch.Tensor, tile: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """Of a tile of 16 x 16, lane 4 (row % 8) + (column % 8) / 2 has two columns, of two halves of rows by two of columns."""
    lane = 4 * (row % 8) + column % 8 // 2
    return packed.flatten()[tile * 256 + lane * 8 + 4 * (row // 8) + 2 * (column // 8) + column % 2]


def unpacked(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows again, by the places above."""
    (out, half), (depth, rank) = found["qweight"].shape, found["proj_down"].shape
    n, k, r = torch.arange(out)[:, None], torch.arange(depth)[:, None], torch.arange(rank)
    pairs = torch.arange(half)
    codes = code_at(found["qweight"], n, 2 * pairs) | code_at(found["qweight"], n, 2 * pairs + 1) << 4
    tiles = rank // 16
    return {
        "qweight": codes.view(torch.int8),
        "wscales": block_scale_at(found["wscales"], n.T, torch.arange(depth // 16)[:, None]),
        "proj_up": low_rank_at(found["proj_up"], n // 16 * tiles + r // 16, n % 16, r % 16),
        "proj_down": low_rank_at(found["proj_down"], k // 16 * tiles + r // 16, r % 16, k % 16),
        "wtscale": found["wtscale"],
        **{name: vector_at(x, torch.arange(len(x))) for name, x in found.items() if name in VECTORS},
    }
