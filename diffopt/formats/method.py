"""What a number format is to diffopt."""

from dataclasses import dataclass
from typing import Any

Rule = dict[str, Any]
"""One entry of modelopt's `quant_cfg`; of the rules that match a quantizer the last wins."""

QKV = "*[qkv]_bmm_quantizer"


@dataclass(frozen=True)
class Method:
    name: str
    weight: dict[str, Any]
    """modelopt's attributes of a Linear's weight quantizer."""
    input: dict[str, Any]
    """The same of its input quantizer."""
    algorithm: str
    """modelopt's calibration algorithm: `max` or `smoothquant`."""
    weight_bits: float
    """Stored bits per weight, block scales included."""
    export_dtype: str | None = None
    """The only precision in which the rest of the graph can be exported, where there is only one."""
    export_reason: str = ""
    attention: bool = True
    """Whether query, key and value can be quantized (to FP8) beside it."""

    def rules(self, keep: list[str], exclude: list[str], quantize_mha: bool) -> list[Rule]:
        """Everything off, then Linear weights and inputs on, then the exclusions: they act before calibration.

        `parent_class` keeps LayerNorm inputs out. modelopt's own *_CFG constants are not used: they switch off
        `*proj_out.*`, which in FLUX is the output projection of every single block.
        """
        found: list[Rule] = [{"quantizer_name": "*", "enable": False}]
        found += [
            {"quantizer_name": "*weight_quantizer", "parent_class": "nn.Linear", "cfg": self.weight},
            {"quantizer_name": "*input_quantizer", "parent_class": "nn.Linear", "cfg": self.input},
        ]
        if quantize_mha:
            found.append({"quantizer_name": QKV, "cfg": {"num_bits": (4, 3), "axis": None}})
        for name in [*keep, *exclude]:
            found += [{"quantizer_name": f"{name}.*", "enable": False}]
        return found

    def calibration(self, alpha: float | None) -> Any:
        """modelopt's `algorithm`."""
        return {"method": self.algorithm, "alpha": alpha} if self.algorithm == "smoothquant" else self.algorithm
