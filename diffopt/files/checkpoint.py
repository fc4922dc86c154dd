"""`checkpoint.json`: what was quantized how, by modelopt's own rules."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffopt.files.json_file import JsonFile, later


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """Of a backbone that came quantized."""

    layout: str
    """Of its files."""
    carried: tuple[str, ...] = ()
    """Layers whose codes are written again as they were read: rounding their weights gives others, of the same numbers."""
    folded: tuple[str, ...] = ()
    """Layers whose weights are what their codes stand for, and are not rounded again: that would give other numbers."""
    attention: tuple[str, ...] = ()
    """Attention layers whose products are in FP8."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFile(JsonFile):
    NAME = "checkpoint.json"

    family: str
    format: str
    weight_bits: float
    """Stored bits per quantized weight, block scales included; of a mix of formats their mean."""
    block_size: int | None
    rank: int | None = later(None)
    """Of the part of the weights that is kept beside them."""
    rank_iterations: int = 0
    """How often, at most, that part was fitted in turn with the rounding of the rest."""
    weights: str = "max"
    """How the scales of the weights' blocks were found."""
    rounding: str = "nearest"
    """How the weights are rounded by them."""
    damping: float | None = None
    """Of GPTQ's rounding: the share of the mean of the inputs' squares that was added to them."""
    inputs: str = "max"
    """How the layers' inputs are quantized; `full` leaves them in the model's precision."""
    input_percentile: float | None = None
    """Of inputs by percentile: how much of what calibration saw is within the range, in percent."""
    share_scales: bool = False
    """Whether layers of one input have the same scales."""
    round_scales: bool = False
    """Whether SVDQuant's scales are numbers that BF16 holds."""
    rules: list[dict[str, Any]]
    """modelopt's `quant_cfg`; what JSON makes of its tuples is undone where a checkpoint is restored."""
    algorithm: str | dict[str, Any] | list[Any] | None
    """modelopt's calibration algorithm; of a mix of formats several in turn."""
    mix: Mapping[str, str] | None = None
    """Of a mix of formats the format by layer."""
    layers: tuple[str, ...]
    """Those whose weights are quantized."""
    adopted: Adopted | None = None
    """Of one that was not made here."""
