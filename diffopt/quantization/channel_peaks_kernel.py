"""The kernel of channel_peaks. Apart, since Triton is there only where torch has CUDA."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def peaks_kernel(table, work, like, CHANNELS: tl.constexpr, ROWS: tl.constexpr, TIMES: tl.constexpr):
    """`table` [n, 4] INT64: address of x [rows, channels], of the type of `like`; address of its INT32 peaks; rows; channels.
    `work` [programs, 2] INT32: an entry of the table, and which part of it.

    Addresses are multiples of 16 bytes and channels of 8: said to the compiler, they make its reads eight times as wide.
    """
    entry = table + tl.load(work + 2 * tl.program_id(0)) * 4
    part = tl.load(work + 2 * tl.program_id(0) + 1)
    peaks = tl.load(entry + 1).to(tl.pointer_type(tl.int32))
    rows, channels = tl.load(entry + 2), tl.multiple_of(tl.load(entry + 3).to(tl.int32), 8)
    across = tl.cdiv(channels, CHANNELS)
    first = (part // across).to(tl.int64) * (ROWS * TIMES)
    x = tl.multiple_of(tl.load(entry).to(like.dtype), 16) + tl.multiple_of(first * channels, 8)
    left = (rows - first).to(tl.int32)
    channel = (part % across) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.arange(0, ROWS)
    peak = tl.zeros((ROWS, CHANNELS), tl.int32)
    for _ in range(TIMES):
        inside = (row < left)[:, None] & (channel < channels)[None, :]
        value = tl.load(x + row[:, None] * channels + channel[None, :], inside, 0.0).to(tl.float32)
        peak = tl.maximum(peak, value.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        row += ROWS
    tl.atomic_max(peaks + channel, tl.max(peak, 0), channel < channels)
