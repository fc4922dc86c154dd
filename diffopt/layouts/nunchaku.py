"""SVDQuant's factors as Nunchaku's kernels take them, which diffusers loads as `nunchaku_lite`: in the order of their lanes.

The kernels' matrix products are `mma.m16n8k64` of PTX: 32 lanes, 8 along N by 4 along K, have 8 codes of 4 bits a register. Of
a tile of 128 x 64 codes a lane has 8 x 2 x 2 registers together. Vectors of N, and the low-rank factors, lie as the lanes have
the results of a product. The places are those that deepcompressor's `NunchakuWeightPacker` gives them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from diffopt.layouts import MULTIPLES, RANKS, svdquant

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Lanes:
    """The layout of a folder for diffusers' `nunchaku_lite`, of factors of this rank."""

    rank: int

    def layer(self, quantized: Any, format: str) -> Tensors:
        """Raises ValueError as `svdquant.rows` does, and for lengths that the kernels do not take."""
        found = svdquant.rows(quantized, format)
        out, depth = len(found["qweight"]), len(found["smooth_factor"])
        outputs, inputs = MULTIPLES["nunchaku"]
        if out % outputs or depth % inputs:
            raise ValueError(f"its {out} outputs and {depth} inputs are not multiples of {outputs} and {inputs}")
        if self.rank % RANKS["nunchaku"]:
            raise ValueError(f"its rank {self.rank} is not a multiple of {RANKS['nunchaku']}; set another format.rank")
        return packed(found)

    def config(self, formats: Mapping[str, str], plain: Iterable[str]) -> dict[str, Any]:
        """`quantization_config`, which names each quantized layer."""
        about = {"precision": "nvfp4", "group_size": 16, "rank": self.rank, "targets": sorted(formats)}
        return {"quant_method": "nunchaku_lite", "compute_dtype": "bfloat16", "svdq_w4a4": about}


def packed(rows: Mapping[str, torch.Tensor]) -> Tensors:
    """`svdquant.rows` of a layer in the lanes' order, each of the same shape and type."""
    found = {
        "qweight": codes(rows["qweight"]),
        "wscales": block_scales(rows["wscales"]),
        "proj_down": low_rank(rows["proj_down"].T).reshape(rows["proj_down"].shape),
        "proj_up": low_rank(rows["proj_up"], across=False),
        "wtscale": rows["wtscale"],
    }
    return found | {name: vector(rows[name]) for name in ("smooth_factor", "wcscales", "bias") if name in rows}


def codes(weight: torch.Tensor) -> torch.Tensor:
    """INT8 [N, K / 2], two codes of a row in each."""
    out, half = weight.shape
    registers = weight.contiguous().view(torch.int32)  # [N, K / 8]: eight codes, the first in the lowest bits
    lanes = registers.reshape(out // 128, 8, 2, 8, half // 32, 2, 4)
    return lanes.permute(0, 4, 1, 3, 6, 2, 5).contiguous().view(torch.int8).reshape(out, half)


def block_scales(scales: torch.Tensor) -> torch.Tensor:
    """E4M3 [K / 16, N]: four along K are a register, and a lane has those of every 32nd output."""
    groups, out = scales.shape
    registers = scales.T.contiguous().view(torch.int32)  # [N, K / 64]
    lanes = registers.reshape(out // 128, 4, 4, 8, groups // 4).permute(0, 4, 3, 2, 1)
    return lanes.contiguous().view(scales.dtype).reshape(groups, out)


def vector(values: torch.Tensor) -> torch.Tensor:
    """[N]: a lane has two that lie together, and two eight further on."""
    return values.reshape(-1, 8, 2, 4, 2).transpose(2, 3).reshape(-1)


def low_rank(factor: torch.Tensor, across: bool = True) -> torch.Tensor:
    """[outputs, inputs] of a product in 16 bits, in tiles of 16 x 16, row of tiles by row; with `across` column by column."""
    rows, columns = factor.shape
    tiles = factor.reshape(rows // 16, 16, columns // 16, 16).permute((2, 0, 1, 3) if across else (0, 2, 1, 3))
    lanes = tiles.reshape(*tiles.shape[:2], 2, 8, 2, 4, 2)
    return lanes.permute(0, 1, 3, 5, 2, 4, 6).reshape(rows, columns)
