"""A PTQ checkpoint: the rules and the extremes that its quantizers saw. The weights are derived again from the source."""

import copy
import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from safetensors.torch import load_file, save_file

from diffopt.artifact import Checkpoint, Pipeline
from diffopt.block_arithmetic import simulated
from diffopt.errors import GateError, StoreError
from diffopt.extremes import Extremes, quantizers, replay
from diffopt.formats.method import Rule
from diffopt.pipeline.open import open_backbone
from diffopt.stage import Context

HEAD, EXTREMES, STATE = "checkpoint.json", "extremes.safetensors", "quantizers.safetensors"


def quantize(model: torch.nn.Module, rules: list[Rule], algorithm: Any, extremes: Mapping[str, torch.Tensor]) -> None:
    """Quantize `model` in place with modelopt, calibrated on recorded extremes.

    Raises GateError for extremes that are not finite, as an overflow in a 16-bit model leaves.
    """
    if broken := [name for name, x in extremes.items() if not torch.isfinite(x).all()]:
        raise GateError(
            f"quantize: {broken[0]} saw inf or NaN in calibration (got {len(broken)} such); set another model.dtype"
        )
    with torch.no_grad(), simulated():
        mtq.quantize(model, {"quant_cfg": copy.deepcopy(rules), "algorithm": algorithm}, replay(extremes))


def quantized_layers(model: torch.nn.Module) -> list[str]:
    """Names of the layers whose weights and inputs are quantized."""
    on = {n for n, q in quantizers(model) if q.is_enabled}
    layers = [n.removesuffix(".weight_quantizer") for n, _ in quantizers(model) if n.endswith(".weight_quantizer")]
    return [n for n in layers if {f"{n}.weight_quantizer", f"{n}.input_quantizer"} <= on]


def expected_layers(model: torch.nn.Module, excluded: list[str]) -> list[str]:
    """Names of the layers that a family wants quantized: every Linear that no exclusion names."""
    linear = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    return [n for n in linear if not any(fnmatch(f"{n}.weight_quantizer", f"{e}.*") for e in excluded)]


def state(model: torch.nn.Module) -> Extremes:
    """amax and pre-quant scale of every enabled quantizer, by buffer name, on the CPU."""
    found: Extremes = {}
    for name, quantizer in quantizers(model):
        if quantizer.is_enabled:
            found |= {f"{name}.{key}": b.detach().cpu().contiguous() for key, b in quantizer.named_buffers() if b is not None}
    return dict(sorted(found.items()))


def check(model: torch.nn.Module, expected: list[str]) -> None:
    """Raises GateError when a layer that should be quantized is not, or is with a scale that means nothing."""
    if lost := sorted(set(expected) - set(quantized_layers(model))):
        raise GateError(f"quantize: {len(lost)} of {len(expected)} layers were not quantized (got {lost[0]} ...); report it")
    for name, quantizer in quantizers(model):
        amax = quantizer.amax
        if quantizer.is_enabled and (amax is None or not torch.isfinite(amax).all() or not (amax > 0).any()):
            raise GateError(f"quantize: {name} has no usable scale (got amax {amax}); calibrate on more prompts")


def save(out: Path, head: dict[str, Any], model: torch.nn.Module, extremes: Mapping[str, torch.Tensor]) -> None:
    """Write the checkpoint: `head` has family, format, rules, algorithm and layers."""
    enabled = {name for name, q in quantizers(model) if q.is_enabled}
    save_file({n: x.cpu().contiguous() for n, x in sorted(extremes.items()) if n in enabled}, out / EXTREMES)
    save_file(state(model), out / STATE)
    (out / HEAD).write_text(json.dumps(head, indent=1))


def restore(ctx: Context, pipeline: Pipeline, checkpoint: Checkpoint | None) -> torch.nn.Module:
    """The backbone as the checkpoint left it, bit for bit; the plain one for None.

    Raises StoreError when the scales derived now differ from those stored, as another modelopt may give.
    """
    model = open_backbone(ctx, pipeline)
    if checkpoint is None:
        return model
    head = checkpoint.json(HEAD)
    quantize(model, [_rule(r) for r in head["rules"]], head["algorithm"], load_file(checkpoint.path / EXTREMES))
    stored, derived = load_file(checkpoint.path / STATE), state(model)
    wrong = [n for n in {*stored, *derived} if n not in stored or n not in derived or not torch.equal(stored[n], derived[n])]
    if wrong:
        raise StoreError(
            f"checkpoint: {checkpoint.fingerprint}: {len(wrong)} scales come out otherwise than when it was made "
            f"(got {sorted(wrong)[0]}); `diffopt store verify` tells whether its files are sound"
        )
    return model


def _rule(stored: dict[str, Any]) -> Rule:
    """A rule as modelopt takes it: JSON has made lists of tuples and strings of the block axis."""
    rule = copy.deepcopy(stored)
    cfg = rule.get("cfg")
    if cfg:
        if isinstance(cfg.get("num_bits"), list):
            cfg["num_bits"] = tuple(cfg["num_bits"])
        if blocks := cfg.get("block_sizes"):
            cfg["block_sizes"] = {
                int(k) if k.lstrip("-").isdigit() else k: tuple(v) if isinstance(v, list) else v for k, v in blocks.items()
            }
    return rule
