"""What a number format is to diffopt."""

from dataclasses import dataclass, replace
from typing import Any, Literal

Rule = dict[str, Any]
"""One entry of modelopt's `quant_cfg`; of the rules that match a quantizer the last wins."""

Weights = Literal["max", "mse", "local_hessian", "four_over_six"]
"""How the scales of weights are found: by the largest of a block; by the least squared error of its weights, or of what they
make of the inputs; by which of two ends, 6 or 4, has the least squared error."""

Rounding = Literal["nearest", "gptq"]
"""How weights are rounded by those scales: each to the nearest; or one input after the other, such that those that follow make
good what is lost."""

Inputs = Literal["max", "percentile", "mse", "headroom", "full"]
"""How inputs are quantized: by a scale of the largest that was seen; of one that a share of them is below; of the least squared
error; of one with room above what was seen; or not at all."""

PERCENTILE = 99.99
"""Of inputs by percentile: the share of what calibration saw that is within the range, in percent, where none is given."""

COUNTED: tuple[Inputs, ...] = ("percentile", "mse", "headroom")
"""Those that are drawn from histograms of the inputs."""

Algorithm = Literal["max", "smoothquant", "awq_lite", "awq_clip", "awq_full", "svdquant"]
Awq = Literal["lite", "clip", "full"]
"""What AWQ searches, each by the error of a layer's output: scales of its input channels; where the blocks of its weights are
clipped; both."""

Attributes = dict[str, Any] | list[dict[str, Any]]
"""modelopt's attributes of a quantizer; a list quantizes the same tensor by one after the other."""

QKV = "*[qkv]_bmm_quantizer"

HELD = frozenset(
    {"int8", "int4 static", "e4m3", "e2m1 dynamic e4m3", "e2m1 static e4m3", "e4m3 dynamic e8m0", "int4 static, e4m3"}
)
"""Weights that a graph can hold (diffopt/graph/packing)."""


def kind(num_bits: Any, block_sizes: Any) -> str:
    """A number format in words: values, whether in blocks, and block scales."""

    def number(bits: Any) -> str:
        return f"e{bits[0]}m{bits[1]}" if isinstance(bits, (tuple, list)) else f"int{bits}"

    if not block_sizes:
        return number(num_bits)
    words = [number(num_bits), block_sizes.get("type", "static")]
    return " ".join([*words, number(block_sizes["scale_bits"])] if "scale_bits" in block_sizes else words)


@dataclass(frozen=True)
class Method:
    name: str
    weight: Attributes
    """modelopt's attributes of a Linear's weight quantizer; without `block_sizes` where the block size is chosen."""
    input: Attributes | None
    """The same of its input quantizer; None where only weights are quantized."""
    algorithm: Algorithm | None
    """modelopt's calibration algorithm; None where every scale is found as the tensor passes."""
    weight_bits: float
    """Stored bits per weight, block scales included, at the default block size."""
    convolution: tuple[dict[str, Any], dict[str, Any]] | None = None
    """Attributes of a Conv2d's weight and input; None where convolutions stay in full precision."""
    steps: bool = False
    """Whether a convolution's input scale can be taken from the denoising steps: `percentile`, `collect_method`."""
    block_size: int | None = None
    """Default of the weights' block size, along the input features; None where it cannot be chosen."""
    rank: int | None = None
    """Default rank of the part of the weights that is kept beside them; None where there is none."""
    rank_iterations: int = 0
    """Default of how often that part is fitted anew, to what rounding loses."""
    export_dtype: str | None = None
    """The only precision in which the rest of the graph can be exported, where there is only one."""
    export_reason: str = ""
    weights: tuple[Weights, ...] = ()
    """How its weights' scales can be found, the default first; none where there is no choice, and their rounding has none."""
    awq: tuple[Awq, ...] = ()
    """What AWQ can search, the default first; none where it is not AWQ or has no choice."""
    ranges: tuple[Inputs, ...] = ()
    """How its inputs can be quantized, the default first; none where there is no choice: nothing calibrates them, or their
    channels are scaled before."""
    attention: bool = True
    """Whether query, key and value can be quantized (to FP8) beside it."""

    @property
    def inputs(self) -> bool:
        """Whether what layers compute with is quantized too."""
        return self.input is not None

    def of(self, inputs: Inputs = "max", awq: Awq = "lite") -> "Method":
        """The same where inputs are quantized, and AWQ searches, so."""
        found = replace(self, input=None) if inputs == "full" else self
        kinds: dict[Awq, Algorithm] = {"lite": "awq_lite", "clip": "awq_clip", "full": "awq_full"}
        return replace(found, algorithm=kinds[awq]) if self.awq else found

    @property
    def observes(self) -> bool:
        """Whether it is calibrated on recorded extremes."""
        return self.algorithm in ("max", "smoothquant")

    @property
    def shares(self) -> bool:
        """Whether layers of one input can be given the same scales, and have others without."""
        by_channel = isinstance(self.weight, dict) and self.weight.get("axis") is not None
        return self.algorithm in ("smoothquant", "svdquant") or (self.algorithm == "max" and not by_channel)

    @property
    def rounds(self) -> bool:
        """Whether its scales can be chosen such that BF16 holds them."""
        return self.algorithm == "svdquant"

    @property
    def records(self) -> bool:
        """Whether it searches with activations, and so is calibrated on recorded backbone inputs."""
        return self.algorithm in ("awq_lite", "awq_clip", "awq_full", "svdquant")

    @property
    def blockwise(self) -> bool:
        """Whether scales of blocks are found as a tensor passes, for which modelopt has kernels on a GPU only."""
        return isinstance(self.weight, dict) and self.weight.get("block_sizes", {}).get("type") == "dynamic"

    @property
    def passes(self) -> int:
        """How often the search runs the model over its data: statistics, the search itself, and the maxima of what is left."""
        return {"awq_lite": 2, "awq_clip": 1, "awq_full": 3, "svdquant": 3}.get(self.algorithm or "", 0)

    def bits(self, block_size: int | None) -> float:
        """Stored bits per weight where a block has this many."""
        if not self.block_size or not block_size:
            return self.weight_bits
        return self.weight_bits - 16 / self.block_size + 16 / block_size

    def rules(
        self,
        keep: list[str],
        exclude: list[str],
        quantize_mha: bool,
        block_size: int | None = None,
        convolutions: bool = False,
    ) -> list[Rule]:
        """Everything off, then weights and inputs on, then the exclusions: they act before calibration.

        `parent_class` keeps LayerNorm inputs out. modelopt's own *_CFG constants are not used: they switch off
        `*proj_out.*`, which in FLUX is the output projection of every single block. `convolutions` takes in the Conv2d
        layers of a family that has them, where the format does.
        """
        found: list[Rule] = [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "parent_class": "nn.Linear", "cfg": self.weight_rule(block_size)},
        ]
        if self.input is not None:
            found.append({"quantizer_name": "*input_quantizer", "parent_class": "nn.Linear", "cfg": self.input})
        if self.convolution and convolutions:
            weight, entering = self.convolution
            found += [
                {"quantizer_name": "*weight_quantizer", "parent_class": "nn.Conv2d", "cfg": weight},
                {"quantizer_name": "*input_quantizer", "parent_class": "nn.Conv2d", "cfg": entering},
            ]
        if quantize_mha:
            found.append({"quantizer_name": QKV, "cfg": {"num_bits": (4, 3), "axis": None}})
        for name in [*keep, *exclude]:
            found += [{"quantizer_name": f"{name}.*", "enable": False}]
        return found

    def weights_held(self) -> str:
        """What its weights are, in the words of HELD."""
        rule = self.weight_rule(None)
        parts = rule if isinstance(rule, list) else [rule]
        return ", ".join(kind(x["num_bits"], x.get("block_sizes")) for x in parts)

    def weight_rule(self, block_size: int | None) -> Attributes:
        """The weight's attributes with its block size, which is the first quantizer's where there are two."""
        if self.block_size is None:
            return self.weight
        blocks = {"block_sizes": {-1: block_size or self.block_size, "type": "static"}}
        if isinstance(self.weight, list):
            return [self.weight[0] | blocks, *self.weight[1:]]
        return self.weight | blocks

    def calibration(self, alpha: float | None = None, rank: int | None = None) -> Any:
        """modelopt's `algorithm`."""
        if self.algorithm == "smoothquant":
            return {"method": self.algorithm, "alpha": alpha}
        if self.algorithm == "svdquant":
            return {"method": self.algorithm, "lowrank": rank or self.rank}
        return self.algorithm
