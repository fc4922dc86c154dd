"""`format=`: the number format that the backbone is quantized to."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from diffopt import formats
from diffopt.errors import suggestion
from diffopt.formats.method import PERCENTILE, Awq, Inputs, Method, Rounding, Weights
from diffopt.groups.choices import Choices
from diffopt.groups.gpu_rates import PEAK, Gpu
from diffopt.groups.quantized_source import Quantized
from diffopt.groups.view import View
from diffopt.schema import Group

Component = Literal["fp8", "int8", "nf4"]
DAMPING = 1.0
"""The most that Model-Optimizer takes, whose own is 0.01. On the embedded model 3 is as good (quantization/README.md)."""
PACKAGES = {"fp8": "torchao", "int8": "torchao", "nf4": "bitsandbytes"}
"""Those that keep the weights of a component in a format."""


def _installed(name: str) -> str:
    if name not in formats.METHODS:
        raise ValueError(f"is not a format that is installed; {suggestion(name, formats.METHODS)}")
    return name


def _candidate(name: str) -> str:
    there = [n for n in formats.METHODS if n != "auto"] + ["full"]
    if name not in there:
        raise ValueError(f"is nothing that a layer can be given; {suggestion(name, there)}")
    return name


Name = Annotated[str, AfterValidator(_installed)]
Candidate = Annotated[str, AfterValidator(_candidate)]


def measurable() -> list[str]:
    """Formats that are known from extremes alone."""
    return [n for n, m in formats.METHODS.items() if n != "auto" and not m.records]


def _percent(text: str) -> str:
    number = text.removesuffix("%")
    try:
        fits = text.endswith("%") and 0 < float(number) <= 100
    except ValueError:
        fits = False
    if not fits:
        raise ValueError("is not a share; give a percentage above 0% and up to 100%")
    return f"{float(number):g}%"


Percent = Annotated[str, AfterValidator(_percent)]
"""`60%`."""


def share(percent: str) -> float:
    return float(percent.removesuffix("%")) / 100


class Budget(BaseModel):
    """What a mix of formats may cost, over the layers that it is chosen for. All limits that are set hold together."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    bits: float | None = Field(default=None, gt=0, le=32)
    """Bits per weight on average, block scales included."""
    bytes: int | str | None = None
    """Of the layers' weights as stored: a number, or a percentage of what they take in the model's precision."""
    time: Percent | None = Field(default=None)
    """Of their products: a percentage of the time in 16 bits on `gpu`. An estimate from peak rates (groups/gpu_rates.py)."""
    gpu: Gpu | None = Field(default=None)

    @field_validator("bytes")
    @classmethod
    def _number_or_share(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, str):
            return _percent(value)
        if value is not None and value < 1:
            raise ValueError("is not a size; give a number of bytes, or a percentage")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.bits is None and self.bytes is None and self.time is None:
            raise ValueError(
                "sets no limit; give format.budget.bits, format.budget.bytes, or format.budget.time with format.budget.gpu"
            )
        if (self.time is None) != (self.gpu is None):
            raise ValueError(f"time and gpu go together; give both, or neither: {', '.join(PEAK)} are known")
        return self


def check_measurable(names: Sequence[str]) -> None:
    """Raises ValueError for a format of which one pass cannot tell what a layer would be, and for one named twice."""
    if searching := [n for n in names if n != "full" and formats.method(n).records]:
        raise ValueError(
            f"{searching[0]} is found by a search over many inputs, which one pass does not make; "
            f"choose of {', '.join(measurable())}"
        )
    if len({*names}) != len(names):
        raise ValueError("names one twice; name each once")


class Format(Group):
    readers: ClassVar[dict[str, str]] = {
        "block_size": "a format whose blocks can be chosen (int4_awq, w4a8_awq)",
        "rank": "SVDQuant",
        "rank_iterations": "SVDQuant",
        "share_scales": "a format with scales of whole tensors, or that smooths (int8_sq, fp8, nvfp4, nvfp4_svdquant)",
        "round_scales": "SVDQuant",
        "awq": "int4_awq",
        "inputs": "a format whose inputs have a calibrated range as they come (int8, fp8, nvfp4)",
        "input_percentile": "format.inputs=percentile",
        "weights": "a format of blocks (int4_awq, nvfp4, nvfp4_svdquant, or auto with nvfp4)",
        "rounding": "a format of blocks (int4_awq, nvfp4, nvfp4_svdquant, or auto with nvfp4)",
        "damping": "format.rounding=gptq",
        "quantize_mha": "a format of floating-point inputs (fp8, nvfp4, nvfp4_svdquant)",
        "candidates": "format=auto",
        "budget": "format=auto",
        "components": "what draws pictures or writes a package (eval, export=huggingface)",
    }

    name: Name
    """Name of a file in diffopt/formats, or of another package's format."""
    exclude: list[str] = Field(default=[])
    """Globs over module names (`transformer_blocks.0.*`) kept in full precision, besides the family's own."""
    quantize_mha: bool = False
    """Quantize the query, key and value of attention to FP8 too."""
    share_scales: bool = False
    """Give layers of one input, such as q, k and v, the same scales, as what has them in one product reads them."""
    round_scales: bool = False
    """Of SVDQuant: choose scales that BF16 holds, as vLLM-Omni and Nunchaku store them. Inputs are scaled by powers of two."""
    block_size: int | None = Field(default=None, ge=16)
    """Weights that share a scale, along a layer's input features; null takes the format's default."""
    rank: int | None = Field(default=None, ge=1)
    """Rank of the part of each weight that SVDQuant keeps beside it; null takes the format's default."""
    rank_iterations: int | None = Field(default=None, ge=0)
    """How often SVDQuant's low-rank part is fitted anew, to what rounding loses; 0 takes that of the weight itself, as
    Model-Optimizer does; null takes the format's default."""
    weights: Weights | None = None
    """How the scales of the weights' blocks are found; null takes the format's default."""
    rounding: Rounding = "nearest"
    """How the weights are rounded by those scales: `gptq` has later inputs make good what earlier ones lost."""
    damping: float = Field(default=DAMPING, gt=0, allow_inf_nan=False)
    """Of `rounding=gptq`: the share of the mean of the inputs' squares that is added to them; less trusts calibration more."""
    inputs: Inputs = "max"
    """How the range of the layers' inputs is found: the largest that calibration saw, or one drawn from histograms of them; or
    `full`, not quantized at all."""
    input_percentile: float = Field(default=PERCENTILE, gt=0, lt=100)
    """Of `inputs=percentile`: how much of what calibration saw is within the range, in percent."""
    awq: Awq = "lite"
    """What AWQ searches: scales of input channels, where blocks are clipped, or both."""
    candidates: list[Candidate] = Field(default=[])
    """Of `auto`: the formats that a layer is given one of; `full` leaves it as it is."""
    budget: Budget | None = None
    """Of `auto`: what the mix may cost."""

    components: dict[str, Component | None] = Field(default={})
    """By name text encoders whose weights alone are quantized; null leaves one as it is."""

    @field_validator("components", mode="before")
    @classmethod
    def _kept_in_fewer_bits(cls, value: Any) -> Any:
        for name, format in value.items() if isinstance(value, dict) else ():
            if format in formats.METHODS and format not in get_args(Component):
                raise ValueError(
                    f"{name}: no library keeps weights alone in this on every device (got {format}); "
                    f"choose {' or '.join(get_args(Component))}, or null"
                )
        return value

    def unread(self) -> Mapping[str, str]:
        found = {} if any(self.components.values()) else {"components": "it names no format"}
        method = formats.method(self.name)
        return found if method.ranges else found | {"inputs": _no_ranges(method)}

    @model_validator(mode="after")
    def _has_weights(self) -> Self:
        known = formats.method(self.name).weights
        if self.weights is not None and known and self.weights not in known:
            raise ValueError(f"weights: {self.name} has {', '.join(known)} (got {self.weights}); choose one of them")
        if self.weights not in (None, "max") and formats.method(self.name).awq and self.awq != "lite":
            raise ValueError(
                f"weights: format.awq={self.awq} finds the scales of weights itself (got {self.weights}); set "
                "format.weights=max, or format.awq=lite"
            )
        return self

    @model_validator(mode="after")
    def _has_ranges(self) -> Self:
        there = formats.method(self.name).ranges
        if there and self.inputs not in there:
            raise ValueError(f"inputs: {self.name} has {', '.join(there)} (got {self.inputs}); choose one of them")
        return self

    @model_validator(mode="after")
    def _has_candidates(self) -> Self:
        if self.name == "auto":
            if not {*self.candidates} - {"full"}:
                raise ValueError(f"candidates: names no format to choose of (got {self.candidates}); give two or more")
            try:
                check_measurable(self.candidates)
            except ValueError as e:
                what, _, advice = str(e).partition("; ")
                raise ValueError(f"candidates: {what} (got {self.candidates}); {advice}") from None
            if self.budget is None:
                raise ValueError(
                    "budget: is not set (got None); give format.budget.bits, format.budget.bytes, or format.budget.time with "
                    "format.budget.gpu"
                )
        return self


def _no_ranges(method: Method) -> str:
    """Why a format's inputs have no range to be found otherwise."""
    if method.name == "auto":
        return "its formats are measured by the largest that enters each layer"
    if method.input is None:
        return "its inputs are not quantized"
    if method.algorithm is None:
        return "the scales of its inputs are found as they pass"
    return "its inputs are scaled by channel before they have a range, which is then not that of what was counted"


def inputs(format: Format) -> Inputs:
    """How the range of its layers' inputs is found."""
    return format.inputs if formats.method(format.name).ranges else "max"


def weights(format: Format) -> Weights:
    """How the scales of its weights are found: beside AWQ's clipping there is no other search."""
    method = formats.method(format.name)
    clips = bool(method.awq) and format.awq != "lite"
    there = not clips and any(m.weights for m in formats.methods(format))
    return format.weights or method.weights[0] if there else "max"


def rounds(format: Format) -> bool:
    """Whether its weights are rounded by what the inputs are, and not each to the nearest."""
    return format.rounding == "gptq" and any(m.weights for m in formats.methods(format))


def _iterations(format: Format) -> int:
    """How often its low-rank part is fitted; 0 where it has none."""
    method = formats.method(format.name)
    asked = method.rank_iterations if format.rank_iterations is None else format.rank_iterations
    return asked if method.rank else 0


class FormatView(View, of=Format):
    """How the backbone is quantized; defaults are filled in, so that one left out and one spelled out are the same."""

    name: Name
    exclude: list[str]
    quantize_mha: bool
    share_scales: bool = False
    round_scales: bool = False
    block_size: int | None = None
    rank: int | None = None
    rank_iterations: int = 0
    weights: Weights = "max"
    rounding: Rounding = "nearest"
    damping: float = DAMPING
    inputs: Inputs = "max"
    input_percentile: float = PERCENTILE
    awq: Awq = "lite"

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        if choices.format is None:
            return cls.fields_read()
        method = formats.method(choices.format.name)
        reads = {
            "quantize_mha": method.attention,
            "share_scales": method.shares and choices.format.name != "auto",
            "round_scales": method.rounds,
            "block_size": method.block_size,
            "rank": method.rank,
            "rank_iterations": method.rank,
            "weights": any(m.weights for m in formats.methods(choices.format)),
            "rounding": any(m.weights for m in formats.methods(choices.format)),
            "damping": rounds(choices.format),
            "inputs": bool(method.ranges),
            "input_percentile": inputs(choices.format) == "percentile",
            "awq": method.awq,
        }
        return cls.fields_read() - {name for name, read in reads.items() if not read}

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Format)
        method = formats.method(group.name)
        return [
            cls(
                name=group.name,
                exclude=group.exclude,
                quantize_mha=group.quantize_mha,
                share_scales=group.share_scales,
                round_scales=group.round_scales,
                block_size=method.block_size and (group.block_size or method.block_size),
                rank=method.rank and (group.rank or method.rank),
                rank_iterations=_iterations(group),
                weights=weights(group),
                rounding="gptq" if rounds(group) else "nearest",
                damping=group.damping,
                inputs=inputs(group),
                input_percentile=group.input_percentile,
                awq=group.awq if method.awq else "lite",
            )
        ]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        """Without what is as it was before there was such a choice: checkpoints from then stay known."""
        plain = {
            "share_scales": False,
            "round_scales": False,
            "rank_iterations": 0,
            "weights": "max",
            "rounding": "nearest",
            "inputs": "max",
            "awq": "lite",
        }
        found = {n: x for n, x in super().identity(used).items() if n not in plain or x != plain[n]}
        return found | ({"rank_start": "subspace"} if "rank_iterations" in found else {})  # which was an SVD at first


class ComponentsView(View, of=Format):
    components: dict[str, Component | None]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        return {"components": {n: f for n, f in self.components.items() if f}}


def slims(choices: Choices) -> bool:
    """Whether text encoders are to be kept in fewer bits."""
    return choices.format is not None and any(choices.format.components.values())


class MixView(View, of=Format):
    """What `auto` chooses under."""

    candidates: list[Candidate]
    budget: Budget | None
    exclude: list[str]
    weights: Weights = "max"
    """Of those that have a choice."""

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        there = choices.format is None or any(m.weights for m in formats.methods(choices.format))
        return cls.fields_read() - (set() if there else {"weights"})

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Format)
        return [cls(candidates=group.candidates, budget=group.budget, exclude=group.exclude, weights=weights(group))]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        """Without maxima, as it was before there was such a choice: mixes from then stay known."""
        found = super().identity(used)
        return {n: x for n, x in found.items() if n != "weights" or x != "max"}


def as_read(found: Quantized) -> Format:
    """What was chosen of a model that is quantized already: its own format, a mix without a budget."""
    return Format.model_construct(
        name=found.name,
        candidates=[*found.formats] if found.name == "auto" else [],
        quantize_mha=found.attention,
        share_scales=found.share_scales,
    )
