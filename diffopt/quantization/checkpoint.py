"""A checkpoint: the rules, and the extremes that its quantizers saw or what a search found.

The weights are derived again from the source; a trained checkpoint has its own beside, one by GPTQ their codes.
"""

import copy
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from safetensors.torch import load_file, save_file

from diffopt.artifact import Checkpoint, Pipeline
from diffopt.errors import GateError, StoreError
from diffopt.files.checkpoint import CheckpointFile
from diffopt.formats.method import Rule
from diffopt.pipeline.open import blank_backbone, device, open_backbone
from diffopt.quantization import adopted
from diffopt.quantization.awq_svdquant import DerivedError, Found, rebuild
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.extremes import Extremes, quantizers, replay
from diffopt.quantization.layers import expected_layers
from diffopt.quantization.rules import rule
from diffopt.quantization.scales import AMAX, HIGHEST, LOWEST, Quantizer, check_finite
from diffopt.quantization.shared_scales import share_weights, smooth
from diffopt.quantization.weight_scales import ROUNDED, put, split
from diffopt.quantization.zeros import refuse
from diffopt.stage import Context

_END = re.compile(r"\.\w+_quantizer(\.\d+)?$")
"""What follows the layer in a quantizer's name."""
EXTREMES, STATE, WEIGHTS = "extremes.safetensors", "quantizers.safetensors", "weights.safetensors"
QUANTIZED = "quantized.safetensors"
"""Of a backbone that came quantized: codes and scales of its layers, and all that is not quantized."""

__all__ = [
    "check",
    "expected_layers",
    "quantize",
    "quantized_layers",
    "restore",
    "save",
    "save_adopted",
    "save_found",
    "save_trained",
    "state",
]


def quantize(
    model: torch.nn.Module, rules: list[Rule], algorithm: Any, extremes: Mapping[str, torch.Tensor], share: bool = False
) -> None:
    """Quantize `model` in place with modelopt, calibrated on recorded extremes.

    With `share` layers of one input have the same scales, as shared_scales.py says. A list of algorithms is of a mix of
    formats: each calibrates those layers that are its own. Raises GateError as `check_finite` does.
    """
    check_finite(extremes)
    in_turn = algorithm if isinstance(algorithm, list) else []
    if algorithm == "max" and any(_microscaled(rule) for rule in rules):  # maxima would be kept of those that have none
        in_turn = [algorithm]
    with torch.no_grad(), simulated():
        smooths = share and isinstance(algorithm, dict)
        config = {"quant_cfg": copy.deepcopy(rules), "algorithm": None if in_turn or smooths else algorithm}
        mtq.quantize(model, config, replay(extremes))
        if smooths:
            smooth(model, extremes, algorithm["alpha"], (LOWEST, HIGHEST))
        elif share:
            share_weights(model, extremes)
        smoothed = _smoothed(model) if in_turn else set()
        for step in in_turn:
            with _only(model, smoothed, smoothing=step != "max"):
                mtq.calibrate(model, step, replay(extremes))


def _microscaled(rule: Rule) -> bool:
    """Whether a rule's quantizers are of a format without calibrated maxima: its scales are powers of two."""
    cfgs = rule.get("cfg") or {}
    return any((x.get("block_sizes") or {}).get("scale_bits") == (8, 0) for x in (cfgs if isinstance(cfgs, list) else [cfgs]))


def _smoothed(model: torch.nn.Module) -> set[str]:
    """Quantizers of the linear layers whose inputs' extremes are to be taken by channel, which SmoothQuant moves."""
    found = set()
    for name, module in model.named_modules():
        entering = getattr(module, "input_quantizer", None)
        if entering is not None and entering.is_enabled and (entering.num_bits, entering.axis) == (8, -1):
            found |= {f"{name}.input_quantizer", f"{name}.weight_quantizer"}
    return found


@contextmanager
def _only(model: torch.nn.Module, smoothed: set[str], smoothing: bool) -> Iterator[None]:
    """Within it, only those quantizers are on that one algorithm calibrates: modelopt's SmoothQuant would take the inputs
    of every format by channel, and its maxima those of what is smoothed once more."""
    off = []
    for name, quantizer in quantizers(model):
        if quantizer.is_enabled and ((name in smoothed) != smoothing or quantizer.is_mx_format):
            quantizer.disable()
            off.append(quantizer)
    try:
        yield
    finally:
        for quantizer in off:
            quantizer.enable()


def quantized_layers(model: torch.nn.Module) -> list[str]:
    """Names of the layers whose weights are quantized."""
    return [n for n, m in model.named_modules() if _rounds(m)]


def _rounds(layer: Any) -> bool:
    """One that was read may have its weight rounded already."""
    return getattr(getattr(layer, "weight_quantizer", None), "is_enabled", False) or hasattr(layer, "as_read")


def state(model: torch.nn.Module) -> Extremes:
    """amax and pre-quant scale of every enabled quantizer, by buffer name, on the CPU."""
    found: Extremes = {}
    for name, quantizer in quantizers(model):
        if quantizer.is_enabled:
            found |= {f"{name}.{key}": b.detach().cpu().contiguous() for key, b in quantizer.named_buffers() if b is not None}
    return dict(sorted(found.items()))


def check(model: torch.nn.Module, expected: list[str], inputs: bool = True) -> None:
    """Raises GateError when a layer that should be quantized is not, or is with a scale that means nothing.

    `inputs` tells whether the layers' inputs are to be quantized too.
    """
    on = {name: q for name, q in quantizers(model) if q.is_enabled}
    scaled = {name: q.amax for name, q in on.items() if not q.is_mx_format}
    layers = {n for n in quantized_layers(model) if not inputs or f"{n}.input_quantizer" in on}
    _gate(expected, layers, scaled)


def check_scales(known: list[Quantizer], found: Extremes, expected: list[str], inputs: bool = True) -> None:
    """The same of quantizers that rules switch on, both of weights and of inputs, and the scales that were found for them."""
    on = {q.name for q in known}
    layers = {q.layer for q in known if q.weight and (not inputs or f"{q.layer}.input_quantizer" in on)}
    _gate(expected, layers, {q.name: found.get(f"{q.name}.{AMAX}") for q in known if q.scaled})


def _gate(expected: list[str], quantized: set[str], scaled: Mapping[str, torch.Tensor | None]) -> None:
    if lost := sorted(set(expected) - quantized):
        raise GateError(f"quantize: {len(lost)} of {len(expected)} layers were not quantized (got {lost[0]} ...); report it")
    places = {name: _END.sub("", name) for name in scaled}
    refuse(
        [places[n] for n, amax in scaled.items() if "weight_quantizer" in n and amax is not None and not amax.any()],
        [places[n] for n, amax in scaled.items() if "weight_quantizer" not in n and amax is not None and not amax.any()],
        [places[n] for n, amax in scaled.items() if amax is None],
    )
    if broken := [n for n, amax in scaled.items() if amax is not None and not torch.isfinite(amax).all()]:
        raise GateError(f"quantize: {broken[0]} has a scale of inf or NaN (got {len(broken)} such); set another model.dtype")


def save(
    out: Path, head: CheckpointFile, known: list[Quantizer], extremes: Mapping[str, torch.Tensor], found: Extremes
) -> None:
    """Write the checkpoint of a max-style format."""
    on = {q.name for q in known}
    save_file({n: x.cpu().contiguous() for n, x in sorted(extremes.items()) if n in on}, out / EXTREMES)
    save_file(found, out / STATE)
    head.write(out)


def save_found(out: Path, head: CheckpointFile, found: Found) -> None:
    """Write the checkpoint of a format that searched."""
    save_file(found, out / STATE)
    head.write(out)


def save_adopted(out: Path, head: CheckpointFile, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the checkpoint of a backbone that came quantized."""
    save_file({n: x.cpu().contiguous() for n, x in sorted(tensors.items())}, out / QUANTIZED)
    head.write(out)


def save_trained(
    out: Path, ptq: Checkpoint, weights: Mapping[str, torch.Tensor], scales: Mapping[str, torch.Tensor] = MappingProxyType({})
) -> None:
    """Write the checkpoint of a model that was made from another by training these weights; its quantizers stay, but for
    these scales of blocks."""
    for name in (CheckpointFile.NAME, EXTREMES, STATE):
        if (ptq.path / name).is_file():
            shutil.copyfile(ptq.path / name, out / name)
    others = {f"{n.removesuffix('.weight')}.weight_quantizer{ROUNDED}" for n in weights}
    stored = load_file(out / STATE) if (out / STATE).is_file() else {}
    if scales or others & {*stored}:
        save_file({n: x for n, x in stored.items() if n not in others} | dict(scales), out / STATE)
    save_file({n: x.detach().cpu().contiguous() for n, x in sorted(weights.items())}, out / WEIGHTS)


def restore(ctx: Context, pipeline: Pipeline, checkpoint: Checkpoint | None) -> torch.nn.Module:
    """The backbone as the checkpoint left it, bit for bit; the plain one for None.

    Raises StoreError when the scales derived now differ from those stored, as another modelopt may give, and for a
    checkpoint of another architecture.
    """
    if checkpoint is not None and (head := CheckpointFile.read(checkpoint.path)).adopted:
        return _adopted(ctx, pipeline, checkpoint, head)
    model = open_backbone(ctx, pipeline)
    if checkpoint is None:
        return model
    _derive(model, checkpoint)
    if (checkpoint.path / WEIGHTS).is_file():
        _put_trained(model, checkpoint)
    return model


def _adopted(ctx: Context, pipeline: Pipeline, checkpoint: Checkpoint, head: CheckpointFile) -> torch.nn.Module:
    """Of a checkpoint that came quantized: nothing of it is of the pipeline's own weights."""
    try:
        found = adopted.restored(blank_backbone(ctx, pipeline), head, load_file(checkpoint.path / QUANTIZED))
    except ValueError as e:
        raise StoreError(f"checkpoint: {checkpoint.fingerprint}: {e} (got another model); read it again") from None
    return found.to(device(ctx, pipeline)).eval()


def _put_trained(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    own = dict(model.named_parameters())
    for name, weight in load_file(checkpoint.path / WEIGHTS).items():
        if name not in own or own[name].shape != weight.shape or own[name].dtype != weight.dtype:
            raise StoreError(
                f"checkpoint: {checkpoint.fingerprint}: its weights are not of this model (got {name} of "
                f"{list(weight.shape)} in {weight.dtype}); train it again on this one"
            )
        own[name].data.copy_(weight)


def _derive(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Make of the plain `model` what was calibrated."""
    head = CheckpointFile.read(checkpoint.path)
    stored, searched = split(load_file(checkpoint.path / STATE))
    rules = [rule(r) for r in head.rules]
    if not (checkpoint.path / EXTREMES).is_file():
        try:
            rebuild(model, rules, head.algorithm, stored)
        except DerivedError as e:
            raise StoreError(_otherwise(checkpoint, str(e))) from None
        put(model, searched, head.weights)
        return
    quantize(model, rules, head.algorithm, load_file(checkpoint.path / EXTREMES), head.share_scales)
    derived = state(model)
    wrong = [n for n in {*stored, *derived} if n not in stored or n not in derived or not torch.equal(stored[n], derived[n])]
    if wrong:
        raise StoreError(_otherwise(checkpoint, f"{len(wrong)} scales, the first {sorted(wrong)[0]}"))
    put(model, searched, head.weights)


def _otherwise(checkpoint: Checkpoint, what: str) -> str:
    return (
        f"checkpoint: {checkpoint.fingerprint}: scales come out otherwise than when it was made (got {what}); "
        "`diffopt store verify` tells whether its files are sound"
    )
