"""The layout in which tensor cores of compute capability 10.0 on read block scales: cuBLAS calls it 128x4 tiles.

A tile has the scales of 128 rows and 4 blocks: 32 x 16 bytes, of which row r of the tile has the bytes 4 (r // 32) to
4 (r // 32) + 3 of line r % 32. Tiles lie row of tiles by row of tiles; what a matrix lacks of its last ones is zero.
"""

import torch

ROWS, ACROSS, LINES = 128, 4, 32


def length(rows: int, blocks: int) -> int:
    """Of the scales of `rows` x `blocks` in tiles."""
    return -(-rows // ROWS) * ROWS * -(-blocks // ACROSS) * ACROSS


def tiled(scales: torch.Tensor) -> torch.Tensor:
    """[rows, blocks] of one byte each, to [length] in tiles."""
    rows, blocks = scales.shape
    padded = torch.nn.functional.pad(scales.view(torch.uint8), (0, -blocks % ACROSS, 0, -rows % ROWS))
    tiles = padded.view(-1, ROWS, padded.shape[1] // ACROSS, ACROSS).transpose(1, 2).reshape(-1, ROWS // LINES, LINES, ACROSS)
    return tiles.transpose(1, 2).reshape(-1).view(scales.dtype)


def straight(scales: torch.Tensor, rows: int, blocks: int) -> torch.Tensor:
    """The inverse: [length] in tiles to [rows, blocks]."""
    across = -(-blocks // ACROSS)
    tiles = scales.view(torch.uint8).view(-1, LINES, ROWS // LINES, ACROSS).transpose(1, 2).reshape(-1, across, ROWS, ACROSS)
    whole = tiles.transpose(1, 2).reshape(-1, across * ACROSS)
    return whole[:rows, :blocks].contiguous().view(scales.dtype)
