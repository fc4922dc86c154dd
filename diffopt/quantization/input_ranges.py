"""Ranges of inputs that are not those of their largest: drawn from histograms, by modelopt's own calibrators where they can.

A range goes where the largest stood, in the recorded extremes. So all that follows, and what derives a checkpoint's scales
again, has them without a word of how they were found.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from modelopt.torch.quantization.calib import HistogramCalibrator, NVFP4ActHeadroomCalibrator

from diffopt.formats.method import Inputs, Method
from diffopt.quantization.extremes import Extremes
from diffopt.quantization.histogram import BLOCKS, MANTISSAS, NUMBERS, Histograms, numbers
from diffopt.quantization.rounding import Fp8Rounding, Int8Rounding
from diffopt.quantization.scales import check_finite

DOWN, APART = 4, 4
"""Ranges that are tried for the least squared error: so many octaves down from the largest, one number of BF16 in so many."""


def ranged(
    extremes: Mapping[str, torch.Tensor],
    histograms: Histograms,
    layers: Iterable[str],
    kind: Inputs,
    method: Method,
    percentile: float,
) -> Extremes:
    """The extremes, those of the inputs of `layers` brought to their range: FP32 [channels], of which the largest is it.

    `method` is what they are rounded by; `percentile` is read by the kind of that name. Raises GateError as `check_finite`
    does.
    """
    check_finite(extremes)
    assert isinstance(method.input, dict)
    found = dict(extremes)
    for name in (f"{layer}.input_quantizer" for layer in layers):
        if name in found:
            peaks = found[name].float()
            counts = histograms[name + BLOCKS if kind == "headroom" else name]
            amax = _amax(kind, counts, peaks.amax(), method.input["num_bits"], percentile).to(peaks.device)
            found[name] = peaks.clamp(max=amax)
            found[name][peaks.argmax()] = amax
    return found


def _amax(kind: Inputs, counts: torch.Tensor, largest: torch.Tensor, num_bits: Any, percentile: float) -> torch.Tensor:
    """FP32 []. But for headroom no larger than the largest."""
    if kind == "headroom":
        return _headroom(counts, largest)
    found = _percentile(counts, percentile) if kind == "percentile" else _least_error(counts, num_bits)
    return torch.minimum(found, largest.cpu())


def _percentile(counts: torch.Tensor, percentile: float) -> torch.Tensor:
    calibrator = HistogramCalibrator(8, None, False)
    calibrator._calib_hist, calibrator._calib_bin_edges = counts.numpy(), numbers(NUMBERS + 1).numpy()
    found: torch.Tensor = calibrator.compute_amax("percentile", percentile=percentile)
    return found


def _least_error(counts: torch.Tensor, num_bits: Any) -> torch.Tensor:
    """The range with which rounding has the least squared error.

    modelopt 0.47 has such a search of histograms too, which fails: it gives its roundings the bits where their bias stands.
    """
    there = counts.nonzero()
    first, last = int(there[0]), int(there[-1])
    values, many = numbers()[first : last + 1], counts[first : last + 1].double()
    tried = values.flip(0)[: DOWN * MANTISSAS : APART]
    rounding = Int8Rounding(None, tried[:, None], narrow=False) if num_bits == 8 else Fp8Rounding(None, tried[:, None])
    return tried[((rounding(values) - values).double().square() * many).sum(1).argmin()]


def _headroom(counts: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """modelopt's, with its own settings: 16384 times what 1% of the blocks' maxima are below, where that is above 99.99%."""
    calibrator = NVFP4ActHeadroomCalibrator()
    calibrator._hist, calibrator._running_max = counts, largest.cpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where blocks are so far apart that there is no room
        found: torch.Tensor = calibrator.compute_amax()
    return found
