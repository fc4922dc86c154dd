"""`bench.json`: ways to run one model, timed in turn on one machine, beside what its arithmetic takes at least."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffopt.files.cache_summary import CacheSummary
from diffopt.files.json_file import JsonFile
from diffopt.files.latency import Speedup, Spread
from diffopt.files.machine import Machine


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """Of the GPU that computes, by its driver."""

    sm_clock: int
    """MHz, as are the others."""
    max_sm_clock: int
    memory_clock: int
    power: float
    """Watts."""
    power_limit: float
    temperature: int
    """Degrees Celsius."""


@dataclass(frozen=True)
class Rate:
    """How fast one product is on this machine, measured in the same run."""

    kind: str
    """`plain`, a linear layer in the model's precision; `kernel`, one of the format's kernels; `attention`; or
    `fp8_attention`, the same in FP8."""
    shape: tuple[int, ...]
    """Rows, inputs and outputs of a linear layer; batch, heads, queries, keys and channels of attention."""
    flops: float
    """Floating-point operations a second, or integer ones; a multiplication and an addition are two."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating-point operations of the products of one denoising step, all backbone calls together."""

    calls: float
    """Backbone calls in a step, on the average."""
    kernel: float
    """Of linear layers for which the chosen format has kernels; 0 without a format."""
    linear: float
    """Of the others."""
    convolution: float
    attention: float
    """Of attention that no contender has in FP8."""
    fp8_attention: float = 0.0
    """Of attention that the native contender has in FP8."""

    @property
    def attended(self) -> float:
        return self.attention + self.fp8_attention

    @property
    def total(self) -> float:
        return self.kernel + self.linear + self.convolution + self.attended


@dataclass(frozen=True)
class Floor:
    """What the arithmetic of a step takes at the rates of the same run, and nothing else."""

    milliseconds: float
    times: float
    """How many times as long the step took."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes."""

    weights: int
    """Of the backbones as this contender has them; shared with another or not."""
    rest: int | None = None
    """Of the GPU's memory, what the whole pipeline's weights take, text encoders and VAE included; None on a CPU."""
    call: int | None = None
    """What a call takes at most beside them, and what was kept for it, such as CUDA graphs' memory."""

    @property
    def peak(self) -> int | None:
        """What it takes at most on a GPU of its own."""
        return None if self.rest is None or self.call is None else self.rest + self.call


@dataclass(frozen=True, kw_only=True)
class Contender:
    name: str
    """As `eval.bench` has it, and with a cache `NAME+METHOD`."""
    title: str
    """For people: `native FP8`."""
    opening: float
    """Seconds from the files to a pipeline that can draw; of what several share each has all of it."""
    first_picture: float
    """Seconds of the first call after that, which compiles and tunes what is compiled and tuned."""
    seconds_per_image: Spread
    milliseconds_per_step: Spread | None
    """Over the calls the mean of a call's steps but the first; None where there is no other."""
    seconds_per_call: Sequence[float]
    memory: Memory
    over_base: Speedup | None
    """How many times as fast it is as the base, call by call in turn; None of the base itself."""
    over_eager: Speedup | None
    """The same beside `eager`, where that is there."""
    floor: Floor | None
    """None where its arithmetic was not counted."""
    cache: CacheSummary | None = None
    verdict: str | None = None
    """What that says, in a line: of the base beside `eager`, of the others beside the base; None of `eager` itself."""


@dataclass(frozen=True, kw_only=True)
class BenchFile(JsonFile):
    NAME = "bench.json"
    SCHEMA = "diffopt.bench/1"

    format: str | None
    """The chosen one."""
    dtype: str
    machine: Machine
    versions: Mapping[str, str | None]
    """Of what computes, the GPU's driver among it."""
    before: GpuState | None
    """When the timed calls began, after warming up; None where no driver tells."""
    after: GpuState | None
    """When they had ended."""
    batch_size: int
    steps: int
    """Denoising steps."""
    warmup: int
    repeats: int
    encodes: bool
    """Whether calls encode their prompts; random weights have no text encoders."""
    work: Work | None
    rates: tuple[Rate, ...]
    base: str
    """The contender that the others are compared with: `compiled`, or `eager` where that is not there."""
    contenders: tuple[Contender, ...]
    headline: str | None
    """Name of the contender that the bench is about: `native`, else `tensorrt`, else `onnxruntime`, else the one with a
    cache; None where there is none of them."""

    @property
    def first(self) -> Contender | None:
        """The headline's contender."""
        return next((c for c in self.contenders if c.name == self.headline), None)
