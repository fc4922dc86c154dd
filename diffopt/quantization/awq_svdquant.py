"""Formats that search, AWQ and SVDQuant: what they find is kept, and put back without a search.

AWQ scales a layer's input channels by s and its weights by 1 / s; SVDQuant then takes a low-rank B A out of the weights
and quantizes the rest. With s, A, B and the maxima at hand the weights follow from the source's own.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.opt.conversion import ModeloptStateManager
from modelopt.torch.quantization import model_calib
from modelopt.torch.quantization.conversion import create_and_replace_svdquant_linear_on_the_fly, update_quantize_metadata
from modelopt.torch.quantization.mode import get_modelike_from_algo_cfg
from modelopt.torch.quantization.nn import SequentialQuantizer

from diffopt.errors import GateError
from diffopt.formats.method import Rule
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.extremes import quantizers
from diffopt.quantization.low_rank import Alternation
from diffopt.quantization.svdquant_scales import alike, settled, unreached

Found = dict[str, torch.Tensor]
"""Buffer name -> value: amax, pre-quant scale (FP32, [channels]), low-rank factors A [rank, in] and B [out, rank];
with `TURNED` behind the name its transpose."""

SCALE, A, B, AMAX = "._pre_quant_scale", "._svdquant_lora_a", "._svdquant_lora_b", "._amax"
CLIPPING = ("awq_clip", "awq_full")
TURNED = ".T"
"""Ends the name of a matrix that lies column by column in memory."""


class DerivedError(Exception):
    """A quantizer's scale is not what it was. Its name is the text."""


def calibrate(
    model: torch.nn.Module,
    rules: list[Rule],
    algorithm: Any,
    loop: Callable[[torch.nn.Module], None],
    share: bool = False,
    round: bool = False,
    alternation: Alternation | None = None,
) -> Found:
    """Quantize `model` in place, by a search over what `loop` shows it; returns what `rebuild` needs, on the CPU.

    `share`, `round` and `alternation` are of SVDQuant alone, as svdquant_scales.py and low_rank.py say.

    Raises GateError when a layer was never reached, or by NaN, which would then be quantized without its search; and where
    a maximum is not finite.
    """
    with torch.no_grad(), simulated(), smoothing() as scales, settled(model, share, round, alternation):
        try:
            mtq.quantize(model, {"quant_cfg": copy.deepcopy(rules), "algorithm": algorithm}, loop)
        except AssertionError as e:
            if not str(e).startswith("detected"):  # modelopt's calibrator asserts that what it sees is finite
                raise
            raise GateError(f"quantize: inf or NaN in calibration (got {e}); set another model.dtype") from None
    found: Found = {}
    for name, module in model.named_modules():
        if not _weighted(module) or algorithm == "awq_clip":  # which smooths nothing
            continue
        if module not in scales:
            raise unreached(name)
        found[f"{name}.input_quantizer{SCALE}"] = scales[module].cpu().contiguous()
    for name, quantizer in quantizers(model):
        for key, buffer in quantizer.named_buffers():
            if quantizer.is_enabled and f".{key}" in (AMAX, A, B):
                # Taken out of the weights was a product with B lying so, and its last bits depend on that.
                turned = buffer.dim() == 2 and not buffer.is_contiguous() and buffer.T.is_contiguous()
                own = (buffer.T if turned else buffer).detach().to("cpu", copy=True)  # scales that are put later change it
                found[f"{name}.{key}{TURNED if turned else ''}"] = own.contiguous()
    _straighten(model)
    return dict(sorted(found.items()))


def rebuild(model: torch.nn.Module, rules: list[Rule], algorithm: Any, found: Mapping[str, torch.Tensor]) -> None:
    """Make of the plain `model`, in place, what `calibrate` made, bit for bit: modelopt's classes and its state too.

    Raises DerivedError where a scale of the weights comes out otherwise than it was found.
    """
    found = {n.removesuffix(TURNED): x.T if n.endswith(TURNED) else x for n, x in found.items()}
    with torch.no_grad(), simulated():
        mtq.quantize(model, {"quant_cfg": copy.deepcopy(rules), "algorithm": None})
        if A in {n[-len(A) :] for n in found}:
            create_and_replace_svdquant_linear_on_the_fly(model)
        layers = {n.removesuffix(f".input_quantizer{SCALE}"): x for n, x in found.items() if n.endswith(SCALE)}
        with SequentialQuantizer.convert_to_single_quantizer(model):
            for name, scale in layers.items():
                layer: Any = model.get_submodule(name)
                model_calib.apply_pre_quant_scale_and_smooth(layer, scale.to(layer.weight.device))
        for name in layers or [n for n, m in model.named_modules() if _weighted(m)]:
            layer = model.get_submodule(name)
            if f"{name}.weight_quantizer{A}" in found:
                _take_out(layer, *(found[f"{name}.weight_quantizer{factor}"] for factor in (A, B)))
            model_calib.max_calibrate(layer, lambda layer: layer.weight_quantizer(layer.weight))
        _put_back(model, found, clipped=algorithm in CLIPPING)
        _straighten(model)
        add_mode(model, algorithm)


def _take_out(layer: Any, a: torch.Tensor, b: torch.Tensor) -> None:
    """The layer's weight without its low-rank part, which it computes beside."""
    quantizer, weight = layer.weight_quantizer, layer.weight.data
    quantizer.svdquant_lora_a, quantizer.svdquant_lora_b = a.to(weight.device), b.to(weight.device)
    weight.sub_(quantizer.svdquant_lora_b @ quantizer.svdquant_lora_a)
    quantizer.reset_amax()


def _straighten(model: torch.nn.Module) -> None:
    """Low-rank factors row by row in memory, as `mto.restore` makes them: their products then have the same last bits."""
    for _, quantizer in quantizers(model):
        for key, buffer in list(quantizer.named_buffers()):
            if f".{key}" in (A, B):
                setattr(quantizer, key, buffer.contiguous())


def _weighted(module: Any) -> bool:
    return bool(getattr(getattr(module, "weight_quantizer", None), "is_enabled", False))


def _put_back(model: torch.nn.Module, found: Mapping[str, torch.Tensor], clipped: bool) -> None:
    """With `clipped` the maxima of weights are not those of the weights, to which they are not compared then."""
    device = next(model.parameters()).device
    stored = {n.removesuffix(AMAX): x.to(device) for n, x in found.items() if n.endswith(AMAX)}
    on = {name: quantizer for name, quantizer in quantizers(model) if quantizer.is_enabled}
    largest = _largest(on, {n.removesuffix(A): x for n, x in found.items() if n.endswith(A)})
    for name, quantizer in on.items():
        derived = largest.get(name, quantizer.amax)
        if derived is None and name in stored:
            quantizer.amax = stored[name]
        # The product B A has other last bits on another device, and with it the maximum of what is left.
        elif (
            derived is not None
            and not clipped
            and not (
                name in stored
                and derived.shape == stored[name].shape
                and torch.allclose(derived.float(), stored[name].float(), rtol=0.01, atol=0)
            )
        ):
            raise DerivedError(name)
        elif derived is not None:
            if quantizer.amax.dtype != stored[name].dtype:
                quantizer.reset_amax()  # which keeps its precision
            quantizer.amax = stored[name]


def _largest(on: Mapping[str, Any], factors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By quantizer of a weight the largest maximum of those that share its factor A, and so its scale."""
    groups = alike([n for n in on if n in factors], factors)
    return {name: torch.stack([on[n].amax for n in group]).amax(0) for name, group in groups.items()}


def add_mode(model: torch.nn.Module, algorithm: Any) -> None:
    """Tell modelopt that its algorithm was applied, so that it saves and restores the model as one that was searched."""
    manager = ModeloptStateManager(model)
    ((mode, given),) = get_modelike_from_algo_cfg(algorithm)
    config = manager.get_config_class(mode, given)
    metadata: dict[str, Any] = {}
    update_quantize_metadata(model, config, metadata)
    manager.add_mode(mode, config, metadata)


@contextmanager
def smoothing() -> Iterator[dict[torch.nn.Module, torch.Tensor]]:
    """Within it, the scales by which modelopt smooths, by layer, in FP32: what it keeps of them is in the model's dtype."""
    smooth = model_calib.apply_pre_quant_scale_and_smooth
    scales: dict[torch.nn.Module, torch.Tensor] = {}

    def noted(linear: torch.nn.Module, pre_quant_scale: torch.Tensor) -> None:
        scales[linear] = pre_quant_scale.detach().float().clone()
        smooth(linear, pre_quant_scale)

    model_calib.apply_pre_quant_scale_and_smooth = noted
    try:
        yield scales
    finally:
        model_calib.apply_pre_quant_scale_and_smooth = smooth
