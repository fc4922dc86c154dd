"""Absolute maxima by channel of many tensors in one launch.

The forward of a UNet on a GPU is bound by its launches. A reduction of every layer's input by itself costs it a third more,
all of them together a tenth.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

CHANNELS, ROWS, TIMES = 128, 32, 4
"""What one program of the kernel reads: so many channels of TIMES times so many rows."""


@dataclass
class Raised:
    """A tensor [..., channels], dense in memory from an address that 16 divides, and where its peaks go."""

    x: torch.Tensor
    version: int
    """How often it had been changed in place when it was seen."""
    channels: int
    """A multiple of 8."""
    keys: list[str] = field(default_factory=list)


def bits(channels: int, device: torch.device) -> torch.Tensor:
    """Peaks of nothing yet, INT32 [channels]: the bits of FP32 numbers without a sign, which order as integers do.

    FP32 holds a maximum of any shorter type exactly, and NaN is above infinity.
    """
    return torch.zeros(channels, dtype=torch.int32, device=device)


def raise_to_peaks(found: list[torch.Tensor], tensors: list[Raised]) -> None:
    """Raise each `found`, of `bits`, to the peaks of its tensor. All tensors are of one type and on one device."""
    x = tensors[0].x
    if x.is_cuda:
        _launch(found, tensors)
        return
    for peaks, t in zip(found, tensors, strict=True):
        flat = t.x.detach().as_strided((t.x.numel() // t.channels, t.channels), (t.channels, 1))
        torch.maximum(peaks, flat.abs().amax(0).float().view(torch.int32), out=peaks)


def _launch(found: list[torch.Tensor], tensors: list[Raised]) -> None:
    from diffopt.quantization.channel_peaks_kernel import peaks_kernel

    table = tuple(
        n for t, p in zip(tensors, found, strict=True) for n in (t.x.data_ptr(), p.data_ptr(), t.x.numel(), t.channels)
    )
    sent, work, programs = _work(table, tensors[0].x.device)
    peaks_kernel[(programs,)](sent, work, tensors[0].x, CHANNELS, ROWS, TIMES)


@lru_cache(maxsize=512)
def _work(table: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Kept, since a backbone's tensors have the same addresses call after call."""
    entries = np.array(table).reshape(-1, 4)
    entries[:, 2] //= entries[:, 3]
    parts = -(-entries[:, 3] // CHANNELS) * -(-entries[:, 2] // (ROWS * TIMES))
    entry = np.repeat(np.arange(len(parts)), parts)
    work = np.stack([entry, np.arange(len(entry)) - (np.cumsum(parts) - parts)[entry]], 1).astype(np.int32)
    return torch.from_numpy(entries).to(device), torch.from_numpy(work).to(device), len(entry)
