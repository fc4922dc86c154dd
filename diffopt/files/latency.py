"""`latency.json`: candidate and full-precision baseline timed in turn on one machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffopt.files.cache_summary import CacheSummary
from diffopt.files.interval import CallInterval
from diffopt.files.json_file import JsonFile
from diffopt.files.machine import Machine


@dataclass(frozen=True)
class Spread:
    median: float
    p10: float
    p90: float
    """10th and 90th percentile."""


@dataclass(frozen=True)
class Timing:
    seconds_per_image: Spread
    milliseconds_per_step: Spread | None
    """Without each call's first denoising step; None where there is no other."""
    seconds_per_call: Sequence[float]
    cache: CacheSummary | None = None


@dataclass(frozen=True)
class Speedup:
    """How many times faster the candidate is, call by call in turn."""

    end_to_end: CallInterval
    per_step: CallInterval | None


@dataclass(frozen=True, kw_only=True)
class LatencyFile(JsonFile):
    NAME = "latency.json"
    SCHEMA = "diffopt.latency/1"

    runtime: str
    machine: Machine
    batch_size: int
    steps: int
    """Denoising steps."""
    warmup: int
    repeats: int
    baseline: Timing
    candidate: Timing | None = None
    """None where it is the baseline itself."""
    speedup: Speedup | None
