"""Rules of modelopt as a checkpoint has stored them."""

import copy
from typing import Any

from diffopt.formats.method import Rule


def rule(stored: dict[str, Any]) -> Rule:
    """A rule as modelopt takes it: JSON has made lists of tuples and strings of the block axis."""
    found = copy.deepcopy(stored)
    cfgs = found.get("cfg") or []
    for cfg in cfgs if isinstance(cfgs, list) else [cfgs]:
        if isinstance(cfg.get("num_bits"), list):
            cfg["num_bits"] = tuple(cfg["num_bits"])
        if blocks := cfg.get("block_sizes"):
            cfg["block_sizes"] = {
                int(k) if str(k).lstrip("-").isdigit() else k: tuple(v) if isinstance(v, list) else v for k, v in blocks.items()
            }
    return found
