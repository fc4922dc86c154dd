"""Layers of one input with the same scales: q, k and v, as a server that has them in one product reads one scale for all.

A weight's scale by tensor is that of the largest of them, and SmoothQuant takes the largest weight of any of them for each
input channel. Their inputs are one tensor, so that its scale is the same already.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from modelopt.torch.quantization.model_calib import apply_pre_quant_scale_and_smooth, max_calibrate

from diffopt.quantization.extremes import replay

SIBLINGS = (
    ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    ("to_q", "to_k", "to_v"),
    ("add_q_proj", "add_k_proj", "add_v_proj"),
)
"""Within one module, as diffusers names them in every family; a single block of FLUX has its MLP beside its attention."""


def groups(layers: Iterable[str], extremes: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Those of `layers` that are to share, two or three together. What saw the same extremes has one input: the q of an
    attention to a text stays alone."""
    left, found = dict.fromkeys(n for n in layers if f"{n}.input_quantizer" in extremes), []
    parents = dict.fromkeys(".".join(parts[:-i]) for n in left for parts in [n.split(".")] for i in (2, 1) if len(parts) >= i)
    for parent in parents:
        for names in SIBLINGS:
            there = [n for n in (f"{parent}.{x}".lstrip(".") for x in names) if n in left]
            while there:
                first = extremes[f"{there[0]}.input_quantizer"]
                same = [n for n in there if torch.equal(extremes[f"{n}.input_quantizer"], first)]
                if len(same) > 1:
                    found.append(same)
                    for name in same:
                        del left[name]
                there = [n for n in there if n not in same]
    return sorted(found)


def smoothing(weights: Iterable[torch.Tensor], peak: torch.Tensor, alpha: float) -> torch.Tensor:
    """SmoothQuant's scale [in] of an input whose channels come up to `peak`, for all of the weights [out, in], in FP32."""
    largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    return largest.pow(1 - alpha) / peak.float().pow(alpha)


@torch.no_grad()
def smooth(model: torch.nn.Module, extremes: Mapping[str, torch.Tensor], alpha: float, limits: tuple[float, float]) -> None:
    """modelopt's SmoothQuant of a model whose quantizers are there and see nothing yet, with one scale for each group."""
    max_calibrate(model, replay(extremes))
    layers: dict[str, Any] = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and _by_channel(m)}
    together = {name: group for group in groups(layers, extremes) for name in group}
    scales = {
        name: smoothing([layers[n].weight for n in together.get(name, [name])], layer.input_quantizer.amax.flatten(), alpha)
        for name, layer in layers.items()
    }
    for name, layer in layers.items():
        entering, peak = layer.input_quantizer, layer.input_quantizer.amax.float()
        entering._amax_for_smoothing = peak.cpu()
        entering.reset_amax()
        entering.axis = None
        entering.amax = peak.amax().to(dtype=layer.weight.dtype, device=layer.weight.device)
        apply_pre_quant_scale_and_smooth(layer, scales[name].clamp(*limits))


def _by_channel(layer: Any) -> bool:
    entering = getattr(layer, "input_quantizer", None)
    return entering is not None and entering.is_enabled and entering.axis == -1 and entering.amax is not None


@torch.no_grad()
def share_weights(model: torch.nn.Module, extremes: Mapping[str, torch.Tensor]) -> None:
    """Give the calibrated weights of each group that have one scale a tensor the largest of them."""
    layers = {
        name: m for name, m in model.named_modules() if getattr(getattr(m, "weight_quantizer", None), "is_enabled", False)
    }
    for group in groups(layers, extremes):
        quantizers: list[Any] = [layers[name].weight_quantizer for name in group]
        if all(q.amax is not None and q.amax.numel() == 1 for q in quantizers):
            largest = torch.stack([q.amax for q in quantizers]).amax(0)
            for quantizer in quantizers:
                quantizer.amax = largest
